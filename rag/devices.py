"""Where PyTorch's models run, and that loading them is quiet.

Knows PyTorch and transformers; no model of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers.utils import logging as transformers_logging

from rag.errors import SettingsError


def chosen_device(device: str) -> str:
    """Return `cpu` or `cuda`; `auto` takes CUDA where there is one.

    Raises:
        SettingsError: `cuda` is asked for and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "RAG_EMBEDDING__DEVICE is 'cuda', but this torch finds no CUDA device. "
            "Set it to 'auto', or install a CUDA build of torch."
        )
    return device


@contextlib.contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep transformers from drawing a progress bar of its own."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
