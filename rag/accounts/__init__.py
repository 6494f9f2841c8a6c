"""Who chats, what was said and how it was rated, in SQL.

Knows neither Chainlit nor models; an SQLite file or PostgreSQL.
"""
