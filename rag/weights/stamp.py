"""Which bytes a model file had when it was last read through; not where the file comes from.

Hashing half a gigabyte at each start costs seconds. A record (one JSON file) remembers size,
modification time and SHA-256 of files; only a file whose size or time moved is read again.
A change that keeps both is not seen until then: this finds damage, not an attacker.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rag.errors import ChecksumMismatch
from rag.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Stamp:
    """What a file was when its SHA-256 was taken."""

    n_bytes: int
    mtime_ns: int
    sha256: str


def sha256_of(path: Path, *, progress: Progress = silent) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    n_total, n_done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            n_done += len(block)
            progress(f"checking {path.name}", n_done, n_total)
    return digest.hexdigest()


def read(record: Path) -> dict[str, Stamp]:
    """Return the stamps of a record by name; `{}` when there is none that can be read."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return {name: Stamp(**stamp) for name, stamp in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write(record: Path, sha256s: Mapping[Path, str]) -> None:
    """Add the files' stamps, as they are on disk now, to a record."""
    stamps = read(record)
    for path, sha256 in sha256s.items():
        stat = path.stat()
        stamps[_name(record, path)] = Stamp(stat.st_size, stat.st_mtime_ns, sha256)
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_name(f"{record.name}.{os.getpid()}.part")
    part.write_text(json.dumps({n: asdict(s) for n, s in stamps.items()}, indent=1) + "\n", "utf-8")
    part.replace(record)


def current(path: Path, *, record: Path, progress: Progress = silent) -> str:
    """Return the SHA-256 a file has now, reading it only when it changed since its stamp."""
    stamp = read(record).get(_name(record, path))
    if stamp is not None and _is_fresh(stamp, path):
        return stamp.sha256
    found = sha256_of(path, progress=progress)
    # a cache that cannot be written costs the next start a second reading, nothing else
    with contextlib.suppress(OSError):
        write(record, {path: found})
    return found


def verify(
    path: Path, *, record: Path, mend: str, expected: str | None = None, progress: Progress = silent
) -> None:
    """Check a file against its SHA-256, reading it only when it changed since its stamp.

    Args:
        path: The file.
        record: Where its stamp is, or will be.
        mend: What to do about a corrupt file, as a sentence.
        expected: The SHA-256 it must have. None: the one in the record, and any at the first time.
        progress: Told how far the reading is.

    Raises:
        ChecksumMismatch: the file has another SHA-256.
    """
    stamp = read(record).get(_name(record, path))
    if stamp is not None:
        expected = expected or stamp.sha256
        if _is_fresh(stamp, path) and stamp.sha256 == expected:
            return
    found = sha256_of(path, progress=progress)
    if expected is not None and found != expected:
        raise ChecksumMismatch(str(path), expected=expected, found=found, mend=mend)
    with contextlib.suppress(OSError):
        write(record, {path: found})


def _is_fresh(stamp: Stamp, path: Path) -> bool:
    stat = path.stat()
    return (stamp.n_bytes, stamp.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def _name(record: Path, path: Path) -> str:
    # relative names let a folder be moved together with its record
    inside = path.is_relative_to(record.parent)
    return path.relative_to(record.parent).as_posix() if inside else str(path)
