"""A folder of the cache: made once, by one process at a time, whole or not at all, and checked.

Does not know what is made. Its record (`stamp`) is written last, by whoever makes the files.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from filelock import FileLock

from rag.errors import WeightsError
from rag.progress import Progress
from rag.weights import stamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHECKSUMS = "checksums.json"


def built_once(folder: Path, build: Callable[[Path], None], *, progress: Progress) -> Path:
    """Return a folder of the cache, built by `build` unless it is there whole, and checked."""
    record = folder / CHECKSUMS
    if not is_built(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            progress(f"waiting for {folder.name}", 0, 0)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not is_built(folder):
                    _build(folder, build)
        except OSError as e:
            raise WeightsError(
                f"Model files cannot be written to {str(folder)!r}: {e.strerror or e}. "
                "Make room, or set XDG_CACHE_HOME to a folder on another disk."
            ) from e
    mend = f"Delete the folder {str(folder)!r} and run again: it is made anew."
    for file in stamp.read(record):
        stamp.verify(folder / file, record=record, mend=mend, progress=progress)
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    # whoever holds the lock is alone: what lies under the temporary name is of a killed process
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    part.mkdir()
    try:
        build(part)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_built(folder: Path) -> bool:
    """Say whether a folder of the cache has every file that was written to it."""
    stamps = stamp.read(folder / CHECKSUMS)
    return bool(stamps) and all((folder / file).is_file() for file in stamps)
