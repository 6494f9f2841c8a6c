"""What this machine has to compute with: its cores, and signs of a GPU.

Asks the operating system only; loads no library that computes, so asking costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import psutil

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What a driver shows on Linux: NVIDIA's, WSL's, and AMD's, which torch calls `cuda` too."""


def n_physical_cores() -> int:
    """Count the physical cores this process may use.

    Hyper-threads and cores beyond a container's quota only make threads that compute wait for each
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


def may_have_gpu() -> bool:
    """Say whether looking for a GPU can pay; only PyTorch, 5 to 13 seconds to import, knows."""
    return shutil.which("nvidia-smi") is not None or any(
        Path(device).exists() for device in _GPU_DEVICES
    )


def free_memory_bytes() -> int:
    """Return the memory that this process may still take, of the machine's or the container's."""
    free = int(psutil.virtual_memory().available)
    cgroup = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # "max" is no number: no limit
        used = int((cgroup / "memory.current").read_text())
        # cached files count as used, and go when memory is wanted
        for line in (cgroup / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                used -= int(line.split()[1])
        free = min(free, limit - used)
    return free
