"""Settings become parts, and parts become what `rag` offers."""

from rag.wiring.answering import chat_engine, documents, prepare, query_engine, retriever
from rag.wiring.evaluating import (
    draft_questions,
    evaluate,
    figures,
    plan_evaluation,
    read_questions,
)
from rag.wiring.mirroring import (
    follow,
    pending,
    row,
    sync,
    verify,
    write_demo,
)
from rag.wiring.parts import index_uri
from rag.wiring.standing import Status, status, table_version

__all__ = [
    "Status",
    "chat_engine",
    "documents",
    "draft_questions",
    "evaluate",
    "figures",
    "follow",
    "index_uri",
    "pending",
    "plan_evaluation",
    "prepare",
    "query_engine",
    "read_questions",
    "retriever",
    "row",
    "status",
    "sync",
    "table_version",
    "verify",
    "write_demo",
]
