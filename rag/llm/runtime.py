"""What llama.cpp needs from the process: a number of threads and a way to be aborted.

Knows llama.cpp's C interface; knows no prompts and no LlamaIndex.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import llama_cpp

from rag.llm.call import Stop


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

    @contextlib.contextmanager
    def raised_by(self, stop: Stop | None) -> Iterator[None]:
        """Abort what llama.cpp does inside the block within 10 ms of `stop`."""
        if stop is None:
            yield
            return
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.01):
                if stop.is_set():
                    self._buffer[0] = b"\x01"
                    return

        watcher = threading.Thread(target=watch, name="rag-abort", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            self._buffer[0] = b"\x00"


def n_physical_cores() -> int:
    """Count the physical cores this process may use.

    Hyper-threads and cores beyond a container's quota only make llama.cpp's threads wait for each
    other.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        with contextlib.suppress(OSError):
            cores.add(siblings.read_text().strip())
    n_cores = len(cores) or len(allowed) or os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        # cgroup v2: "200000 100000" is two cores' time, "max 100000" no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        n_cores = min(n_cores, max(1, int(quota) // int(period)))
    return n_cores
