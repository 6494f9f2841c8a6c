"""Settings become parts, and parts become what `rag` offers."""

from rag.wiring.answering import chat_engine, documents, prepare, query_engine, retriever
from rag.wiring.evaluating import (
    draft_questions,
    evaluate,
    figures,
    plan_evaluation,
    read_questions,
)
from rag.wiring.facts import columns, examples, versions
from rag.wiring.measuring import bench, server_name
from rag.wiring.mirroring import (
    follow,
    pending,
    row,
    sync,
    verify,
    write_demo,
)
from rag.wiring.models import (
    known_models,
    memory_bytes,
    pull_model,
    use_model,
)
from rag.wiring.parts import index_uri
from rag.wiring.standing import Status, status, table_version

__all__ = [
    "Status",
    "bench",
    "chat_engine",
    "columns",
    "documents",
    "draft_questions",
    "evaluate",
    "examples",
    "figures",
    "follow",
    "index_uri",
    "known_models",
    "memory_bytes",
    "pending",
    "plan_evaluation",
    "prepare",
    "pull_model",
    "query_engine",
    "read_questions",
    "retriever",
    "row",
    "server_name",
    "status",
    "sync",
    "table_version",
    "use_model",
    "verify",
    "versions",
    "write_demo",
]
