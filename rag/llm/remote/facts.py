"""What a model server says about itself: its models, its context window, whether it counts tokens.

Knows what llama.cpp's server, vLLM and Ollama answer; sends no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rag.errors import ModelError, nearest
from rag.llm.remote.connection import Connection

_MOST_LISTED = 8


@dataclass(frozen=True)
class ServerFacts:
    """What is known of a server."""

    url: str
    model: str
    """The name it knows the model by."""
    is_as_named: bool
    """Whether that is the model asked for, under its name or as a file of that name."""
    n_ctx: int | None
    """Tokens of a prompt and its answer; None when it does not tell."""
    counts_tokens: bool
    """Whether it has `/tokenize`."""
    is_llama: bool
    """Whether it is llama.cpp's server."""


def look(connection: Connection, model: str) -> ServerFacts:
    """Ask a server about itself.

    Args:
        connection: To the server.
        model: The model that is wanted; a server with one single model gives that one.

    Raises:
        ModelError: the server cannot be reached, or has several models and not this one.
    """
    listed = _dict(connection.ask("/v1/models")).get("data")
    entries = {str(m["id"]): m for m in listed or [] if isinstance(m, dict) and "id" in m}
    chosen = _chosen(model, list(entries), connection.url)
    props = _dict(_if_there(connection, "/props"))
    settings = _dict(props.get("default_generation_settings"))
    told = (settings.get("n_ctx"), _dict(entries.get(chosen)).get("max_model_len"))
    n_ctx = next((n for n in told if isinstance(n, int) and n > 0), None)
    return ServerFacts(
        url=connection.url,
        model=chosen,
        is_as_named=_is_named(model, chosen),
        n_ctx=n_ctx,
        counts_tokens=count(connection, "a", chosen) is not None,
        is_llama="n_ctx" in settings,
    )


def count(connection: Connection, text: str, model: str) -> int | None:
    """Return the server's own count of a text's tokens; None when it does not count."""
    # llama.cpp's server reads `content`, vLLM reads `prompt`; each ignores the other's names
    body = {"content": text, "add_special": False}
    body |= {"model": model, "prompt": text, "add_special_tokens": False}
    tokens = _dict(_if_there(connection, "/tokenize", body)).get("tokens")
    return len(tokens) if isinstance(tokens, list) else None


def _if_there(connection: Connection, path: str, body: dict[str, Any] | None = None) -> Any:
    # these paths are not OpenAI's: a gateway may answer them with anything
    try:
        return connection.ask(path, body)
    except ModelError:
        return None


def _chosen(model: str, served: Sequence[str], url: str) -> str:
    found = [name for name in served if _is_named(model, name)]
    if found or len(served) == 1:
        return found[0] if found else served[0]
    if not served:
        return model
    listed = ", ".join(map(repr, served[:_MOST_LISTED]))
    more = f" and {len(served) - _MOST_LISTED} more" if len(served) > _MOST_LISTED else ""
    close = nearest(model, served)
    hint = f" Did you mean {close!r}?" if close else ""
    raise ModelError(
        f"The model server at {url} has no model {model!r}; it has {listed}{more}.{hint} "
        "Set RAG_LLM__MODEL to one of them."
    )


def _is_named(model: str, served: str) -> bool:
    """Return whether a server's name for a model means the one that is asked for.

    `llama3` is Ollama's `llama3:latest`; a GGUF file is called after its model and quantisation.
    """
    if served in (model, f"{model}:latest"):
        return True
    file = PurePath(served).name
    return file.endswith(".gguf") and file.startswith(PurePath(model).name)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
