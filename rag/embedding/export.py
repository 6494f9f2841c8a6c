"""The 8-bit ONNX copy of a model, in the cache: found, or made once, with what was measured of it.

Loads no model; `exporting` makes the files in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rag import weights
from rag.embedding.parity import MIN_COSINE
from rag.errors import WeightsError
from rag.progress import Progress, silent
from rag.weights import stamp
from rag.weights.building import CHECKSUMS, built_once, is_built

MODEL = "model.onnx"
MEASURED = "parity.json"
_LAYOUT = 2
"""Version of what `exporting` writes: a folder of another version is left alone and not used."""
_SPACE = "+onnx-int8"
_PIPELINE = ("config.json", "modules.json", "*/config.json")
"""What besides the weights decides an embedding: which layers, which pooling."""


@dataclass(frozen=True)
class Export:
    """An exported model."""

    file: Path
    min_cosine: float
    """The least cosine to torch's embeddings of the same texts, see `parity`."""

    @property
    def is_same_space(self) -> bool:
        """Whether both engines may answer from one index."""
        return self.min_cosine >= MIN_COSINE


def exported(folder: Path, fingerprint: str, *, progress: Progress = silent) -> Export:
    """Return a model's export, making it first: half a minute, 4 GB of memory, once.

    Args:
        folder: The sentence-transformers folder.
        fingerprint: What identifies the model (`weights.embedding_fingerprint`).
        progress: Told what is being done.

    Raises:
        WeightsError: the model cannot be exported, or the cache cannot be written.
        ChecksumMismatch: the export was damaged since it was made.
    """
    digest = hashlib.sha256(weights.weights_digest(folder).encode())
    for path in sorted(path for pattern in _PIPELINE for path in folder.glob(pattern)):
        digest.update(path.read_bytes())
    name = f"{_prefix(fingerprint)}{digest.hexdigest()[:12]}-{_LAYOUT}"

    def build(target: Path) -> None:
        _export(folder, target, progress)
        files = (target / MODEL, target / MEASURED)
        stamp.write(target / CHECKSUMS, {file: stamp.sha256_of(file) for file in files})

    return _read(built_once(weights.cache_dir() / name, build, progress=progress))


def recorded(fingerprint: str) -> Export | None:
    """Return the latest export of a model that is in the cache; None where there is none."""
    folders = weights.cache_dir().glob(f"{_prefix(fingerprint)}{'?' * 12}-{_LAYOUT}")
    found = [folder for folder in folders if is_built(folder)]
    return _read(max(found, key=lambda folder: folder.stat().st_mtime)) if found else None


def space(fingerprint: str) -> str:
    """Return what identifies the embeddings of a model's export.

    The model's own fingerprint where both engines agree, and as long as nothing is measured;
    else one of its own, so that an index never mixes the two.
    """
    found = recorded(fingerprint)
    return fingerprint if found is None or found.is_same_space else fingerprint + _SPACE


def _prefix(fingerprint: str) -> str:
    return f"onnx-{re.sub(r'[^A-Za-z0-9.]+', '-', fingerprint)}-"


def _read(folder: Path) -> Export:
    found = json.loads((folder / MEASURED).read_text("utf-8"))
    return Export(folder / MODEL, float(found["min_cosine"]))


def _export(folder: Path, target: Path, progress: Progress) -> None:
    """Run `exporting` and pass on what it says."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a file of the working directory must not stand in for a library
    command = [sys.executable, "-P", "-m", "rag.embedding.exporting", str(folder), str(target)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(  # noqa: S603 – this program and two folders, no shell
            command, stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"doing"'):
                    progress(json.loads(line)["doing"], 0, 0)
            code = process.wait()
        finally:
            process.kill()  # whoever waits may have been interrupted
        if code != 0:
            raise WeightsError(
                f"Model folder {str(folder)!r} cannot be exported for ONNX Runtime: "
                f"{_why(code, said)}. Set RAG_EMBEDDING__ENGINE=torch."
            )


def _why(code: int, said: IO[bytes]) -> str:
    if code == -signal.SIGKILL:
        return "the export was killed; it takes some 4 GB of memory"
    said.seek(0)
    lines = [line for line in said.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else f"it ended with code {code}"
