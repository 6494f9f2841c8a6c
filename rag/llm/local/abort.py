"""A way to make llama.cpp leave off in the middle of a call.

Knows llama.cpp's C interface; knows no prompts and no LlamaIndex.
"""

from __future__ import annotations

import ctypes

import llama_cpp


class AbortFlag:
    """Makes llama.cpp leave off while it reads a prompt.

    llama.cpp asks its abort callback at every node of the graph, some hundred times a token. A
    Python callback would wait for the interpreter lock each time: with one other busy thread,
    generation fell from 15–22 to 4.6 tokens/s. So the callback is the C library's `strlen` on a
    buffer of ours: an empty string says go on, a string of one byte says abort.
    The CUDA backend does not ask; there a prompt ends with its current batch.

    Source: measured 2026-11-22, Gemma 3 270M Q4_K_M, 2 cores, one thread spinning in Python.
    """

    def __init__(self, context: object) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        # kept for the lifetime of the context: llama.cpp holds the bare pointers
        self._callback = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)
        llama_cpp.llama_set_abort_callback(
            context, self._callback, ctypes.cast(self._buffer, ctypes.c_void_p)
        )

    def set(self) -> None:
        """Abort the call that is running, and each that comes, within 10 ms."""
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        """Let calls run."""
        self._buffer[0] = b"\x00"
