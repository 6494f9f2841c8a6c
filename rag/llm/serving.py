"""llama.cpp's own server, out of the xllamacpp wheel, on a GGUF file.

It lives inside the process that starts it and ends with it: nothing is left behind, however that
process ends. Knows llama.cpp's parameters; knows no settings and prints nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import ModelError, SettingsError
from rag.weights import gguf

_SILENT, _TALKATIVE = -1, 3
"""Verbosity: nothing, and llama.cpp's own default."""
_N_BATCH = 256
"""Prompt tokens read at once. Answers of other slots go on between two batches: one of llama.cpp's
own 2,048 tokens would halt them for 9 s on 2 cores (SmolLM2-135M, 220 tokens/s)."""

_MOST_TOKENS = (1 << 31) - 1
"""Of all slots together: a 32-bit number of llama.cpp's."""
_NO_POOLING = (0, -1)
"""None, and unspecified; everything else makes one vector of a text."""


@dataclass(frozen=True)
class Serving:
    """What is served, and where."""

    path: Path
    """The GGUF file."""
    name: str
    """What clients call the model."""
    host: str
    port: int
    """0 takes a free one."""
    key: str
    """What every request but `/health` has to bring."""
    n_parallel: int
    """Answers at once; each has a prompt cache of its own."""
    n_ctx: int
    """Tokens of a prompt and its answer."""
    n_threads: int
    n_gpu_layers: int = -1
    """-1 is all of them; a CPU build ignores it."""
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    is_verbose: bool = False
    """Whether llama.cpp logs to the terminal."""


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine reach what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Server:
    """A server that listens, as long as this is kept."""

    url: str
    """Without `/v1`."""
    key: str
    native: Any


def start(serving: Serving) -> Server:
    """Load the model and listen.

    Blocks while the model is loaded; a signal is handled meanwhile only where this runs in another
    thread than the main one.

    Raises:
        ModelError: xllamacpp is missing, or the model writes no text, or it cannot be loaded or
            the memory is too little.
        SettingsError: the port is taken, the host is none of this machine's, or there are more
            tokens in all than llama.cpp can count.
    """
    try:
        import xllamacpp  # a second llama.cpp: only in the process that serves
    except ImportError as e:
        raise ModelError(
            "Serving a model needs the package xllamacpp, which is not installed. "
            "Run `pip install 'delta-table-chat[server]'`, or `pip install xllamacpp`."
        ) from e
    _refuse_vectors(serving.path)
    _refuse_too_many(serving)
    _refuse_taken(serving.host, serving.port)
    try:
        native = xllamacpp.Server(_params(xllamacpp, serving))
    except RuntimeError as e:  # it says no more than that; the log does
        raise ModelError(
            f"llama.cpp's server cannot serve model file {str(serving.path)!r}: the file is "
            f"damaged or of an unknown kind, or {serving.n_parallel} times {serving.n_ctx:,} "
            "tokens do not fit into memory. `--verbose` shows what it says; get the file again, "
            "set RAG_LLM__MODEL to another, or give fewer with `--parallel` or `--n-ctx`."
        ) from e
    return Server(native.listening_address, serving.key, native)


def start_in_thread(serving: Serving) -> Server:
    """Do as `start` in a thread of its own, so that the caller's signals are handled meanwhile."""
    found: list[Server | Exception] = []

    def work() -> None:
        try:
            found.append(start(serving))
        except Exception as e:  # noqa: BLE001 – raised again in the caller
            found.append(e)

    thread = threading.Thread(target=work, name="rag-serving", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _params(xllamacpp: Any, serving: Serving) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(serving.path)
    params.model_alias = {serving.name}
    params.hostnames = [serving.host]
    params.port = serving.port
    params.api_keys = [serving.key]
    params.n_parallel = serving.n_parallel
    params.n_ctx = serving.n_ctx * serving.n_parallel  # the slots share it
    params.n_batch = params.n_ubatch = _N_BATCH
    params.cont_batching = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = serving.n_threads
    params.n_gpu_layers = serving.n_gpu_layers
    params.main_gpu = serving.main_gpu
    if serving.tensor_split:
        room = len(params.tensor_split)
        params.tensor_split = [*serving.tensor_split, *[0.0] * room][:room]
    # 1.24 times as fast on answers from a passage, source: the notes' measurement
    types = xllamacpp.common_speculative_type
    params.speculative.types = [types.COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K]
    params.endpoint_metrics = True
    params.ui = False
    params.offline = True  # it could fetch models by itself
    params.verbosity = _TALKATIVE if serving.is_verbose else _SILENT
    return params


def _refuse_vectors(path: Path) -> None:
    """Refuse what the native server would serve and no question could be asked of.

    The rule and the sentence are those of `rag.llm.local.loading.check_generates`, which has a
    loaded model to ask; that module belongs to another llama.cpp than the one of this process.
    """
    said = gguf.fields(path)
    architecture = said.get("general.architecture", "")
    if (
        said.get(f"{architecture}.attention.causal") is False
        or said.get(f"{architecture}.pooling_type", 0) not in _NO_POOLING
    ):
        raise ModelError(
            f"Model file {str(path)!r} holds an embedding model ({architecture!r}); "
            "answers need one that generates text."
        )


def _refuse_too_many(serving: Serving) -> None:
    n_tokens = serving.n_parallel * serving.n_ctx
    if n_tokens > _MOST_TOKENS:
        raise SettingsError(
            f"{serving.n_parallel} answers of {serving.n_ctx:,} tokens each are {n_tokens:,} in "
            f"all; llama.cpp counts to {_MOST_TOKENS:,}. Give fewer with `--parallel` or `--n-ctx`."
        )


def _refuse_taken(host: str, port: int) -> None:
    """Find out what the native server does not tell apart from a broken model."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError as e:  # an empty label, or a longer one than names may have
        raise _no_address(host, "no machine can have that name") from e
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"Port {port} of {host} is taken by another program. "
                "End that, or give another with `--port` (0 takes a free one)."
            ) from e
        if e.errno == errno.EACCES:
            raise SettingsError(
                f"Port {port} may not be used without being root; give one from 1024 on "
                "with `--port`."
            ) from e
        raise _no_address(host, str(e.strerror)) from e


def _no_address(host: str, why: str) -> SettingsError:
    return SettingsError(
        f"{host!r} is no address of this machine ({why}). "
        "Give one with `--host`; 127.0.0.1 is reached from here only."
    )
