"""Large files of a hub, downloaded so that a break costs seconds, into the hub's own cache.

The hub's client goes on after a broken connection, but throws away what it has when its process
ends (huggingface_hub 2.4). Here the bytes stay under `<sha256>.incomplete` in the cache's folder
of blobs, the name that `hf cache` knows for such leftovers, and the next process asks for the rest.
Whether the bytes are right is not known here (`hub.verify`).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from rag.errors import WeightsError
from rag.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

_PART = re.compile(r"[0-9a-f]{64}\.incomplete")


@dataclass(frozen=True)
class LargeFile:
    """A file that the hub keeps by its SHA-256, and where it belongs in the cache."""

    url: str
    sha256: str
    n_bytes: int
    blobs: Path

    @property
    def blob(self) -> Path:
        """Where the hub's client looks for it."""
        return self.blobs / self.sha256

    @property
    def part(self) -> Path:
        """What has arrived of it so far."""
        return self.blobs / f"{self.sha256}.incomplete"

    @property
    def n_missing(self) -> int:
        """Bytes still to come."""
        if self.blob.exists():
            return 0
        return self.n_bytes - (self.part.stat().st_size if self.part.exists() else 0)


def large_files(
    repository: str, patterns: Sequence[str], ignored: Sequence[str]
) -> list[LargeFile]:
    """Ask the hub which large files of a repository match, and how large they are.

    Raises:
        HTTPError: of the hub's client, as all its other errors, for `hub.translated`.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(repository, files_metadata=True)
    named = {file.rfilename: file.lfs for file in info.siblings or () if file.lfs is not None}
    wanted = filter_repo_objects(
        named, allow_patterns=list(patterns), ignore_patterns=list(ignored)
    )
    return [
        LargeFile(
            url=hf_hub_url(repository, name, revision=info.sha),
            sha256=named[name].sha256,
            n_bytes=named[name].size,
            blobs=blobs_folder(repository),
        )
        for name in wanted
    ]


def require_room(repository: str, files: Sequence[LargeFile]) -> None:
    """Refuse a download that the disk of the hub's cache cannot hold.

    Raises:
        WeightsError: what is still to come is larger than the room there is.
    """
    n_missing = sum(file.n_missing for file in files)
    folder = blobs_folder(repository)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_missing > free:
        raise WeightsError(
            f"Model {repository!r} needs {n_missing / 1e9:,.1f} GB more on the disk of "
            f"{str(folder)!r}, which has {free / 1e9:,.1f} GB free. "
            "Make room, or set HF_HOME to a folder on another disk."
        )


def download(file: LargeFile, *, bar: type[Any], progress: Progress, what: str) -> None:
    """Download a file into the hub's cache, from where an earlier attempt broke off.

    Args:
        file: What to download; nothing is done where the cache has it.
        bar: A progress bar class for the hub's client.
        progress: Told when the last byte has come, which a bar may leave out.
        what: What is being done, in words.

    Raises:
        HTTPError: of the hub's client, as all its other errors; what has come is kept.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    file.blobs.mkdir(parents=True, exist_ok=True)
    # the hub's own lock of this file: two processes would write one part
    lock = file.blobs.parents[1] / ".locks" / file.blobs.parent.name / f"{file.sha256}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    progress(f"waiting for {file.sha256[:12]}", 0, 0)
    with FileLock(lock):
        if file.blob.exists():
            return
        with file.part.open("ab") as out:
            http_get(
                file.url,
                out,
                resume_size=out.tell(),
                headers=build_hf_headers(),
                expected_size=file.n_bytes,
                tqdm_class=bar,
            )
        file.part.replace(file.blob)
    progress(what, file.n_bytes, file.n_bytes)


def blobs_folder(repository: str) -> Path:
    """Return where the hub's cache keeps the bytes of a repository's files."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name: str = repo_folder_name(repo_id=repository, repo_type="model")
    cache: str = constants.HF_HUB_CACHE
    return Path(cache).expanduser().resolve() / name / "blobs"


def n_bytes_of_parts(repository: str) -> int:
    """Return how many bytes of downloads that broke off are kept for a repository."""
    folder = blobs_folder(repository)
    parts = folder.iterdir() if folder.is_dir() else ()
    return sum(p.stat().st_size for p in parts if _PART.fullmatch(p.name))
