"""Chat with a Delta Lake table: the front door.

Everything public is here; the rooms behind it are free to change.
"""

from rag.errors import RagError
from rag.progress import SyncReport
from rag.settings import Settings
from rag.wiring import chat_engine, documents, evaluate, query_engine, retriever, sync, verify

__all__ = [
    "RagError",
    "Settings",
    "SyncReport",
    "chat_engine",
    "documents",
    "evaluate",
    "query_engine",
    "retriever",
    "sync",
    "verify",
]
