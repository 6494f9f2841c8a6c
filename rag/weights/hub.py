"""The border to the Hugging Face hub: files out of its cache, or over the network into it.

Knows `huggingface_hub` and its errors; does not know which models there are. What the cache
holds is taken without a request, so a model that was downloaded once works offline.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import WeightsError, WeightsNotFound
from rag.progress import Progress, silent
from rag.weights import resuming, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_name(model: str) -> bool:
    """Say whether a model's name has the form of the hub's names: `organisation/name`."""
    return _NAME.fullmatch(model) is not None


def fetch(
    repository: str,
    patterns: Sequence[str],
    *,
    ignored: Sequence[str] = (),
    is_whole: Callable[[Path], bool],
    progress: Progress = silent,
) -> Path:
    """Return the folder that holds a repository's files, downloading what is missing.

    Args:
        repository: `organisation/name`.
        patterns: Glob patterns of the files to have.
        ignored: Glob patterns of files to leave out all the same.
        is_whole: Says of a folder found in the cache whether everything needed is there.
        progress: Told the bytes that have arrived.

    Raises:
        WeightsNotFound: no such repository, no access, or not cached and no network.
        WeightsError: the cache cannot be written, or its disk has too little room.
    """
    # imported here: it takes half a second, and who uses the catalogue's files never needs it
    from huggingface_hub.errors import HFValidationError, HTTPError  # of its HTTP library

    what = f"downloading {repository}"
    bar = _bar(what, progress)
    try:
        found = cached(repository, patterns, ignored=ignored)
        if found is not None and is_whole(found):
            return found
        files = resuming.large_files(repository, patterns, ignored)
        resuming.require_room(repository, files)
        for file in files:
            resuming.download(file, bar=bar, progress=progress, what=what)
        return _snapshot(repository, patterns, ignored, bar=bar)  # the small files, and the links
    except (HTTPError, HFValidationError, OSError) as e:
        raise translated(repository, e) from e


def cached(repository: str, patterns: Sequence[str], *, ignored: Sequence[str] = ()) -> Path | None:
    """Return the folder of a repository in the hub's cache; None where files of it are missing.

    Asks no network.

    Args:
        repository: `organisation/name`.
        patterns: Glob patterns of the files to have.
        ignored: Glob patterns of files to leave out all the same.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(repository, patterns, ignored, bar=_bar("", silent), is_offline=True)
    except LocalEntryNotFoundError:
        return None  # never downloaded, or broken off


def _snapshot(
    repository: str,
    patterns: Sequence[str],
    ignored: Sequence[str],
    *,
    bar: type[Any],
    is_offline: bool = False,
) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
            local_files_only=is_offline,
            tqdm_class=bar,
        )
    )


def verify(path: Path, *, record: Path, progress: Progress = silent) -> None:
    """Check a file of the hub's cache against the SHA-256 that the hub gave for it.

    The cache names a large file's blob by the hub's SHA-256. Where it cannot (a file system
    without links), the SHA-256 found first is recorded and must stay.

    Raises:
        ChecksumMismatch: the file is corrupt.
    """
    blob = path.resolve()  # what must be deleted: a link alone would be linked again
    expected = blob.name if _SHA256.fullmatch(blob.name) else None
    mend = f"Delete {str(blob)!r} and run again: it is downloaded anew."
    stamp.verify(blob, record=record, mend=mend, expected=expected, progress=progress)


def translated(repository: str, error: Exception) -> WeightsError:
    """Return what the user should be told about an error of the hub's client."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        # the client tried the network, then its cache, and says the latter; the former is why
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(error, errors.GatedRepoError):
        return WeightsNotFound(
            f"Model {repository!r} is gated: accept its licence on its page of the hub, "
            "then set HF_TOKEN to a token of that account."
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return WeightsNotFound(
            f"The hub has no model {repository!r} that you may read, nor is that a folder here. "
            "Check the name; for a private model set HF_TOKEN."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return WeightsNotFound(
            f"The hub answered {error.response.status_code} for model {repository!r}. "
            "Check HF_TOKEN, try again later, or set a local model."
        )
    if isinstance(error, OSError) and error.errno is not None and not _is_network(error):
        return WeightsError(
            f"Model {repository!r} cannot be written to the hub's cache: {error.strerror}. "
            "Make room, or set HF_HOME to a folder on another disk."
        )
    return WeightsNotFound(
        f"Model {repository!r} is not in the hub's cache, and the hub cannot be reached "
        f"({type(error).__name__}). Connect to the network once, or set a local model."
    )


def _is_network(error: OSError) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError))


def _bar(what: str, progress: Progress) -> type[Any]:
    """Return a progress bar class for the hub's client that draws nothing and tells `progress`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread that watches the bar

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False})

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            if self.unit == "B" and self.n:
                progress(what, int(self.n), int(self.total or 0))

        def close(self) -> None:
            self.disable = True  # the base class would write to the terminal

    return Bar
