"""Loading a GGUF file in silence, and saying in one sentence why it cannot be.

Knows llama.cpp's log and the metadata of a GGUF; does not know what the model is used for.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
from llama_cpp import Llama, llama_chat_format

from rag.errors import ModelError

_log = logging.getLogger(__name__)
_GGML_LOG_LEVEL_ERROR = 4
_errors: deque[str] = deque(maxlen=20)
_loading = threading.Lock()


@contextlib.contextmanager
def loading() -> Iterator[Sequence[str]]:
    """Load models one at a time, in silence; yields llama.cpp's error lines, oldest first.

    llama-cpp-python swaps the process's stdout and stderr while it loads: two loads at once could
    leave them swapped for good. Its own log callback lets some warnings through, so ours takes
    every line to `logging` at DEBUG, for good and for the whole process.

    llama-cpp-python also compiles the file's chat template, which is hostile input: Jinja works out
    constants as it compiles (`{{ 'x' * 400000000 }}` took 1.6 GB). `template` does that guardedly.
    """
    with _loading:
        _errors.clear()
        llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
        compiling = llama_chat_format.Jinja2ChatFormatter
        llama_chat_format.Jinja2ChatFormatter = _NoFormatter
        try:
            yield _errors
        finally:
            llama_chat_format.Jinja2ChatFormatter = compiling


class _NoFormatter:
    """Stands in for llama-cpp-python's chat template, which is never used."""

    def __init__(self, **_: object) -> None:
        pass

    def to_chat_handler(self) -> None:
        return None


def check_file(path: Path) -> None:
    """Refuse what llama.cpp would refuse with less to say.

    Raises:
        ModelError: there is no such file, or it is no GGUF.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as e:
        raise ModelError(f"Model file {str(path)!r} cannot be read: {e.strerror}.") from e
    if magic != b"GGUF":
        raise ModelError(
            f"Model file {str(path)!r} is no GGUF: it begins with {magic!r} instead of b'GGUF'."
        )


def check_generates(llama: Llama, path: Path) -> None:
    """Refuse a loaded model that llama.cpp runs but that writes no text.

    Raises:
        ModelError: it embeds or ranks texts, needs an encoder's input, or has no vocabulary.
    """
    fields = llama.metadata
    architecture = fields.get("general.architecture", "")
    found = None
    if (
        fields.get(f"{architecture}.attention.causal") == "false"
        # 0 is no pooling, -1 unspecified; everything else makes one vector of a text
        or fields.get(f"{architecture}.pooling_type", "0") not in ("0", "-1")
    ):
        found = "an embedding model"
    elif llama_cpp.llama_model_has_encoder(llama.model):
        found = "an encoder-decoder model"
    elif llama_cpp.llama_model_is_diffusion(llama.model):
        found = "a diffusion model"
    elif llama_cpp.llama_vocab_type(llama_cpp.llama_model_get_vocab(llama.model)) == (
        llama_cpp.LLAMA_VOCAB_TYPE_NONE
    ):
        found = "a model without a vocabulary"
    if found is not None:
        raise ModelError(
            f"Model file {str(path)!r} holds {found} ({architecture!r}); "
            "answers need one that generates text."
        )


def cannot_load(path: Path, errors: Sequence[str], *, n_ctx: int, cause: Exception) -> ModelError:
    """Compose the error for a file that llama.cpp does not load, out of what it logged."""
    told = [line.split("error loading model: ")[-1] for line in errors if "error loading" in line]
    reason = (told or list(errors) or [str(cause)])[0].rstrip(".")
    if "llama_context" in str(cause):
        return ModelError(
            f"Model {str(path)!r} cannot get a context of {n_ctx} tokens: {reason}. "
            "Set RAG_LLM__N_CTX to fewer."
        )
    return ModelError(
        f"Model file {str(path)!r} cannot be loaded: {reason}. "
        "Get it again, or set RAG_LLM__MODEL to another GGUF."
    )


def _to_logging(level: int, text: bytes, _user_data: object) -> None:
    line = text.decode("utf-8", errors="replace").strip()
    if level == _GGML_LOG_LEVEL_ERROR and line:
        _errors.append(line)
    if line:
        _log.debug("llama.cpp: %s", line)


_LOG_CALLBACK = llama_cpp.llama_log_callback(_to_logging)  # llama.cpp keeps the bare pointer
