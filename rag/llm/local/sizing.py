"""How large a context a model gets here, and what of it goes to the GPU.

Knows what a GGUF says about its network and how much memory is free; loads nothing. Estimates, on
the careful side: llama.cpp takes the memory when it loads, and the system kills a process that
then writes to more than there is, without a word.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rag.errors import ModelError
from rag.machine import free_memory_bytes
from rag.weights import gguf

_log = logging.getLogger(__name__)

_N_CTX_LEAST = 512
_MOST_LAYERS = 512
"""llama.cpp's own limit (LLAMA_MAX_LAYERS)."""
_HEADROOM = 0.9
"""Share of the free memory that is counted on."""
_EIGHT_BITS = 34 / 64
"""Size of an 8-bit cache as a share of a 16-bit one: 32 weights and a scale."""
_BUFFER_BYTES = 300_000_000
"""Of a GPU, for what llama.cpp computes in."""


@dataclass(frozen=True)
class Gpu:
    """What may be used of the GPUs."""

    n_layers: int = -1
    """Layers of the model on them; -1 is as many as fit."""
    main: int = 0
    """The one that holds what is not split."""
    tensor_split: tuple[float, ...] | None = None
    """Share of the model for each; None is by their memory."""


@dataclass(frozen=True)
class Size:
    """What is asked of llama.cpp."""

    n_ctx: int
    has_8bit_cache: bool
    n_gpu_layers: int
    n_batch: int
    """Prompt tokens evaluated at once."""

    @property
    def flash_attn(self) -> bool:
        """Whether to use llama.cpp's flash attention.

        A GPU gains by it and an 8-bit cache needs it. A CPU loses: 13.7 tokens/s became 7.4.
        Source: measured 2026-11-23, Gemma 3 270M Q4_K_M, 800 tokens known, 2 cores.
        """
        return self.n_gpu_layers != 0 or self.has_8bit_cache


_CPU_BATCH, _GPU_BATCH = 256, 1024
"""256 read a prompt of 700 tokens as fast as 512 did. Source: measured 2026-11-22, Gemma 3 270M
Q4_K_M, 2 cores: 1.1 s; 64 took 1.2 s. A GPU wants more at once."""


def sized(path: Path, *, n_ctx: int | None, usual_n_ctx: int, gpu: Gpu, can_offload: bool) -> Size:
    """Return what a model gets on this machine, as it is now.

    Args:
        path: The GGUF file.
        n_ctx: Context window that is wanted, in tokens; None is the usual one, or what fits.
        usual_n_ctx: Context window of such a model where memory is no matter.
        gpu: What may be used of the GPUs.
        can_offload: Whether this llama.cpp can use a GPU.

    Raises:
        ModelError: a context that is wanted does not fit into the memory.
    """
    network, n_bytes = gguf.network(path), path.stat().st_size
    if (
        network.n_layers > _MOST_LAYERS
        or 0 < network.n_ctx < _N_CTX_LEAST // 16
        or (network.n_ctx >= 1 << 31)
    ):
        raise ModelError(  # llama.cpp would abort the process
            f"Model file {str(path)!r} says that it has {network.n_layers:,} layers and a context "
            f"of {network.n_ctx:,} tokens, which no model has. Get it again, "
            "or set RAG_LLM__MODEL to another GGUF."
        )
    vram = _free_vram() if can_offload and gpu.n_layers != 0 else []
    n_layers = _layers(path.name, network, n_bytes, gpu, vram, n_ctx or usual_n_ctx) if vram else 0
    if can_offload and gpu.n_layers != 0 and not vram:
        n_layers = gpu.n_layers  # a GPU that cannot be asked: as the user says
    room = sum(vram) if n_layers == -1 and vram else free_memory_bytes()
    room = int(room * _HEADROOM) - n_bytes
    return _with_context(path, network, (n_ctx, usual_n_ctx), room, n_layers)


def _with_context(
    path: Path, network: gguf.Network, n_ctxs: tuple[int | None, int], room: int, n_gpu_layers: int
) -> Size:
    n_batch = _GPU_BATCH if n_gpu_layers else _CPU_BATCH
    n_ctx, usual_n_ctx = n_ctxs
    wanted = n_ctx or usual_n_ctx
    wanted = min(wanted, network.n_ctx or wanted)
    if wanted * network.cache_bytes <= room:
        return Size(wanted, False, n_gpu_layers, n_batch)
    per_token = network.cache_bytes * _EIGHT_BITS
    n_fitting = max(0, int(room / per_token)) if per_token else 0
    if wanted <= n_fitting:
        _log.warning("A context of %s tokens fits in 8 bits only: it is kept so.", f"{wanted:,}")
        return Size(wanted, True, n_gpu_layers, n_batch)
    if n_ctx is None and n_fitting >= _N_CTX_LEAST:
        n_fitting -= n_fitting % 256
        _log.warning("The memory allows a context of %s tokens, no more.", f"{n_fitting:,}")
        return Size(n_fitting, True, n_gpu_layers, n_batch)
    least = "the model itself does not fit"
    if n_fitting >= _N_CTX_LEAST:
        least = f"set RAG_LLM__N_CTX to at most {n_fitting - n_fitting % 256}"
    needed = wanted * network.cache_bytes / 1e9
    raise ModelError(
        f"Model {path.name!r} with a context of {wanted:,} tokens needs {needed:.1f} GB besides "
        f"its {path.stat().st_size / 1e9:.1f} GB, more than the memory that is free here: {least}, "
        "close other programs, or set RAG_LLM__MODEL to a smaller one."
    )


def _layers(
    name: str, network: gguf.Network, n_bytes: int, gpu: Gpu, vram: list[int], n_ctx: int
) -> int:
    """Return how many layers go to the GPUs; -1 is all, the output layer with them."""
    n_all = network.n_layers + 1  # llama.cpp counts the output layer
    n_wanted = n_all if gpu.n_layers < 0 else min(gpu.n_layers, n_all)
    if not network.n_layers:
        return gpu.n_layers
    per_layer = n_bytes / n_all + n_ctx * network.cache_bytes / network.n_layers
    room = sum(vram) * _HEADROOM - _BUFFER_BYTES * len(vram)
    n_fitting = max(0, int(room / per_layer))
    if n_fitting >= n_wanted:
        return -1 if n_wanted == n_all else n_wanted
    _log.warning(
        "%s of %s layers of %s fit into the %.1f GB that the GPU has free; the others run on the "
        "CPU, slower. RAG_LLM__N_CTX set to fewer, or a smaller model, lets more fit.",
        n_fitting,
        n_all,
        name,
        sum(vram) / 1e9,
    )
    return n_fitting


def _free_vram() -> list[int]:
    """Return the free bytes of each NVIDIA GPU; none where the driver cannot be asked."""
    if shutil.which("nvidia-smi") is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
        return [int(line) * 1024 * 1024 for line in found.stdout.splitlines() if line.strip()]
    return []
