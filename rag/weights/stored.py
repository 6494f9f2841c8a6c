"""What of a model is on this machine, and how large it is; fetches and makes nothing.

Knows the catalogue, our cache and the hub's. Not whether the bytes are right: that is checked when
a model is fetched or loaded.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag import weights
from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, HubFile, PackageFile
from rag.weights import hub, resuming
from rag.weights.building import is_built

Installed = Literal["yes", "partly", "package", "no"]
"""`partly`: a download that broke off. `package`: in an installed package, unpacked when first
used."""


@dataclass(frozen=True)
class Stored:
    """What of a model is here."""

    installed: Installed
    n_bytes: int
    """On disk; of a part too."""
    path: Path | None = None
    """The model's file or folder; None where it is not whole."""


def stored(model: str) -> Stored:
    """Return what of a model is here.

    Args:
        model: A name of the catalogue, a local file or folder, or `organisation/name` on the hub.
    """
    entry = EMBEDDING_MODELS.get(model) or LLM_MODELS.get(model)
    if entry is not None:
        if isinstance(entry.source, PackageFile):
            return _packaged(model, entry.source)
        return _of_hub_file(entry.source)
    path = Path(model).expanduser()
    if path.exists():
        return Stored("yes", _n_bytes(path), path)
    return _of_repository(model) if hub.is_name(model) else Stored("no", 0)


def _packaged(model: str, source: PackageFile) -> Stored:
    folder = weights.package_folder(model)
    if is_built(folder):
        path = folder if model in EMBEDDING_MODELS else folder / source.file
        return Stored("yes", _n_bytes(folder), path)
    try:
        importlib.metadata.version(source.package)
    except importlib.metadata.PackageNotFoundError:
        return Stored("no", 0)
    return Stored("package", 0)


def _of_hub_file(source: HubFile) -> Stored:
    folder = hub.cached(source.repository, [source.file])
    found = next(folder.glob(source.file), None) if folder is not None else None
    if found is not None and found.is_file():
        return Stored("yes", found.stat().st_size, found)
    return _partly(source.repository)


def _of_repository(repository: str) -> Stored:
    folder = weights.cached_folder(repository)
    if folder is not None:
        return Stored("yes", _n_bytes(folder), folder)
    return _partly(repository)


def _partly(repository: str) -> Stored:
    n_bytes = resuming.n_bytes_of_parts(repository)
    return Stored("partly", n_bytes) if n_bytes else Stored("no", 0)


def _n_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
