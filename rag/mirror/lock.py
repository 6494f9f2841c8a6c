"""Who syncs: one at a time, and the others are told who and since when.

In a folder it is the lock of the operating system, which is free at once when its holder dies; on
object storage it is a lease (`lease`). It saves work done twice; that no sync undoes another comes
from Lance, which refuses a commit on a stale base. Knows filelock; does not know what a sync does.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock

from rag.errors import IndexWriteError
from rag.mirror.holder import Holder, from_record, say, this_process
from rag.mirror.lease import Lease
from rag.progress import Progress

__all__ = ["Holder", "alone", "holder"]

_LOCK = ".sync.lock"
_RECORD = ".sync.json"
_NOTE_S = 1.0
"""Between two notes of the progress on local disk."""
_INSTANT_S = 0.2
"""Who asks whether the lock is held holds it for an instant: too short a wait to tell of."""


@contextlib.contextmanager
def alone(
    index_uri: str, storage_options: Mapping[str, str] | None, progress: Progress
) -> Iterator[Progress]:
    """Hold the index's lock while a sync runs; a second sync waits, and is told for whom.

    Args:
        index_uri: Folder or URL of the index.
        storage_options: For object storage, the names that deltalake and LanceDB take.
        progress: Told what is waited for, and then whatever the sync tells.

    Yields:
        What the sync is to tell its progress to: it notes it for `holder` and passes it on. It
        raises `IndexWriteError` when the lease was lost to another sync.

    Raises:
        IndexWriteError: the lock cannot be written.
    """
    folder = _folder(index_uri)
    if folder is not None:
        with _locked(index_uri, folder, progress) as told:
            yield told
        return
    lease = Lease.at(index_uri, storage_options)
    if lease is None:  # a kind of storage that obstore lacks: the commit alone has to do
        yield progress
        return
    with lease.held(progress) as told:
        yield told


def holder(index_uri: str, storage_options: Mapping[str, str] | None) -> Holder | None:
    """Return who syncs right now, without waiting and without keeping anybody from it.

    Args:
        index_uri: Folder or URL of the index.
        storage_options: For object storage.

    Returns:
        None when nobody does; one that died counts as nobody.

    Raises:
        IndexWriteError: the object storage cannot be read.
    """
    folder = _folder(index_uri)
    if folder is not None:
        found = _read(folder)
        return found if found is not None and _is_locked(folder) else None
    lease = Lease.at(index_uri, storage_options)
    return None if lease is None else lease.holder()


@contextlib.contextmanager
def _locked(uri: str, folder: Path, progress: Progress) -> Iterator[Progress]:
    lock = filelock.FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, progress)
    except OSError as e:
        raise IndexWriteError(uri, (e.strerror or str(e)).lower()) from e
    try:
        me = this_process()
        _write(folder, me)
        noted_at, noted = time.monotonic(), ""

        def told(what: str, n_done: int, n_total: int) -> None:
            nonlocal noted_at, noted
            # what may take long to come to its next number, so a new one is noted at once
            if what != noted or time.monotonic() - noted_at >= _NOTE_S:
                _write(folder, replace(me, what=what, n_done=n_done, n_total=n_total))
                noted_at, noted = time.monotonic(), what
            progress(what, n_done, n_total)

        yield told
    finally:
        with contextlib.suppress(OSError):
            (folder / _RECORD).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.FileLock, folder: Path, progress: Progress) -> None:
    said = ""
    while True:
        try:
            lock.acquire(timeout=_INSTANT_S)
        except filelock.Timeout:
            said = say(progress, _read(folder), said)
        else:
            return


def _is_locked(folder: Path) -> bool:
    """Ask the operating system, which knows whether the holder lives."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # not ours to read: what the record says has to do
        return True
    try:
        return not filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _read(folder: Path) -> Holder | None:
    try:
        return from_record(json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(folder: Path, record: Holder) -> None:
    # a note for others, no reason to fail: on a full disk `rag sync --purge` has to run
    part = folder / f"{_RECORD}.part"
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(asdict(record)), encoding="utf-8")
        part.replace(folder / _RECORD)


def _folder(uri: str) -> Path | None:
    """Return the local folder that a URI names; None for object storage."""
    if uri.startswith("file://"):
        return Path(url2pathname(urlsplit(uri).path))
    return None if "://" in uri else Path(uri)
