"""`rag serve-model`: the language model for several people, by llama.cpp's own server."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import threading
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from rag import weights
from rag.catalogue import LLM_MODELS
from rag.cli.terminal import err, out, progress_shown, stopping_at_once
from rag.errors import SettingsError
from rag.llm import serving
from rag.machine import n_physical_cores
from rag.settings import LlmSettings, Settings

_LOCAL_N_CTX = 4096
_MOST_N_CTX = 1 << 24
"""As of the setting."""
_KEY_BYTES = 24


def serve_model(
    parallel: Annotated[
        int, typer.Option(min=1, max=256, help="Answers at once; more of them queue.")
    ] = 4,
    host: Annotated[
        str, typer.Option(help="Where to listen; anything but this machine needs a key of yours.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    key: Annotated[
        str | None,
        typer.Option(help="What clients must bring. Unset: RAG_LLM__API_KEY, else a new one."),
    ] = None,
    n_ctx: Annotated[
        int | None,
        typer.Option(
            "--n-ctx", min=512, max=_MOST_N_CTX, help="Tokens of each answer with its prompt."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's log.")] = False,
) -> None:
    """Serve the language model to several people, by llama.cpp's own server (OpenAI endpoints)."""
    settings = Settings().llm
    secret = settings.api_key.get_secret_value() if settings.api_key is not None else None
    given = secret if key is None else key
    if given is not None and not (given.isascii() and given.isprintable() and given.strip()):
        raise SettingsError("The key is blank or no HTTP header can hold it; give another.")
    if given is None and not serving.is_loopback(host):
        raise SettingsError(
            f"Listening on {host!r} lets other machines in, and there is no key. "
            "Set RAG_LLM__API_KEY to one that only your users know (or give `--key`)."
        )
    entry = LLM_MODELS.get(settings.model)
    signal.signal(signal.SIGTERM, _end)
    with stopping_at_once("Stopped."):
        with progress_shown() as progress:
            path = weights.gguf_file(settings.model, progress=progress)
            progress("loading the model", 0, 0)
            server = serving.start_in_thread(
                serving.Serving(
                    path,
                    name=settings.model if entry else path.name,
                    host=host,
                    port=port,
                    key=given or secrets.token_urlsafe(_KEY_BYTES),
                    n_parallel=parallel,
                    n_ctx=n_ctx or settings.n_ctx or (entry.n_ctx if entry else _LOCAL_N_CTX),
                    n_threads=settings.n_threads or n_physical_cores(),
                    n_gpu_layers=settings.n_gpu_layers,
                    main_gpu=settings.main_gpu,
                    tensor_split=settings.tensor_split,
                    is_verbose=verbose,
                )
            )
        _tell(settings.model, server, n_parallel=parallel, is_new_key=given is None)
        threading.Event().wait()


def _tell(model: str, server: serving.Server, *, n_parallel: int, is_new_key: bool) -> None:
    out.print(
        f"Serving {escape(model)} at {escape(server.url)}, {n_parallel} answers at once "
        "(Ctrl-C stops it). Where the chat runs:"
    )
    shown = server.key if is_new_key else "<the key that you gave>"
    out.print(f"    export RAG_LLM__BASE_URL={escape(server.url)}/v1")
    out.print(f"    export RAG_LLM__API_KEY={escape(shown)}")
    if model != LlmSettings().model:
        out.print(f"    export RAG_LLM__MODEL={escape(shlex.quote(model))}")
    sys.stdout.flush()


def _end(*_: object) -> NoReturn:
    # nothing is lost: an answer is only shown
    err.show_cursor()
    sys.stdout.flush()
    os._exit(0)
