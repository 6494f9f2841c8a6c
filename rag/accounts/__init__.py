"""Who chats, what was said and how it was rated, in SQL.

Knows neither Chainlit nor models; an SQLite file or PostgreSQL. A conversation is a thread of steps
(messages, runs, searches) and elements (cards, charts), in the shape of Chainlit's dictionaries.

    accounts.py   users, and the rest for whoever asks: `Accounts`
    chats.py      threads, steps, elements and ratings, each for its owner only
    database.py   opening, transactions, and one sentence for each failure (failures.py)
    schema.py     the tables
    passwords.py  scrypt
    outbox.py     writes in order, kept while the database is away
    removing.py   what a purged row leaves in chats
    turns.py      a thread as questions with their answers → markdown.py, export.py
"""

from rag.accounts.accounts import Accounts, User
from rag.accounts.failures import AccountsUnavailable

__all__ = ["Accounts", "AccountsUnavailable", "User"]
