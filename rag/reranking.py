"""A cross-encoder in process: it reads a question and a passage together, and says how they fit.

Knows sentence-transformers and torch, whose import takes 5 to 13 seconds: import this room late,
in a thread. Does not know where the model folder came from (`weights`), nor what a row is.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder

from rag.devices import chosen_device, no_loading_bar
from rag.errors import ModelError, WeightsNotFound, cause
from rag.splitting import encodable

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTING = "RAG_RETRIEVAL__RERANK_MODEL"
_PAIRS_AT_ONCE = 8
"""Pairs of like length in a batch; one is padded to its longest."""


class Reranker:
    """A cross-encoder with one output; safe to use from several threads.

    No attempt at the network is ever made, and no code of a model's own is run.
    """

    def __init__(self, folder: Path | str, *, device: str = "auto") -> None:
        """Load the model of a folder.

        Args:
            folder: A folder as sentence-transformers' `CrossEncoder` or transformers writes it
                (`weights.reranker_folder`).
            device: `cpu`, `cuda`, or `auto`: CUDA where there is one.

        Raises:
            SettingsError: `cuda` is asked for and there is none.
            WeightsNotFound: the folder holds no cross-encoder that can be loaded.
        """
        folder = Path(folder)
        found_device = chosen_device(device)
        try:
            _refuse_others(folder)
            with no_loading_bar():
                self._model = CrossEncoder(
                    str(folder),
                    device=found_device,
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"dtype": torch.float32},
                )
            if self._model.num_labels != 1:
                raise ValueError(f"it has {self._model.num_labels} outputs instead of one")
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as e:
            raise WeightsNotFound(
                f"Folder {str(folder)!r} cannot be loaded as a cross-encoder: {cause(e)}. "
                f"Set {_SETTING} to another, or unset it."
            ) from e
        self._lock = threading.Lock()
        # in a row's text they would be read as the model's own marks, and part it wherever it likes
        tokens = sorted(self._model.tokenizer.all_special_tokens, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, tokens)))

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """Return how well each passage fits the question.

        Args:
            question: As the person typed it.
            passages: In any order. Of a pair that is longer than the model's window the longer
                text is cut at its end.

        Returns:
            0 to 1 for each passage, greater is better: the sigmoid of the model's output. Only the
            order for one question means something; models spread differently, and none is
            calibrated.

        Raises:
            ModelError: the model failed, for lack of memory say.
        """
        if not passages:
            return []
        pairs = [(self._plain(question), self._plain(passage)) for passage in passages]
        try:
            with self._lock:  # its tokenizer is set to cut and to pad, for one thread at a time
                found = self._model.predict(
                    pairs,
                    batch_size=_PAIRS_AT_ONCE,
                    activation_fn=torch.nn.Identity(),
                    show_progress_bar=False,
                    convert_to_tensor=True,
                )
        except (RuntimeError, IndexError, ValueError) as e:
            raise ModelError(
                f"The cross-encoder failed: {cause(e)}. Set {_SETTING} to another, or unset it."
            ) from e
        # in float32 the sigmoid of 17 is 1 already, and all that a model is sure of would be alike
        return [float(score) for score in found.double().sigmoid()]

    def _plain(self, text: str) -> str:
        return self._marks.sub(" ", encodable(text))


def _refuse_others(folder: Path) -> None:
    """Refuse what sentence-transformers would load all the same, and score with random weights.

    Raises:
        ValueError: it is another kind of model.
    """
    kind = _read(folder / "config_sentence_transformers.json").get("model_type")
    architectures = _read(folder / "config.json").get("architectures") or ["none"]
    if kind != "CrossEncoder" and not architectures[0].endswith("ForSequenceClassification"):
        raise ValueError(f"it is of the kind {kind or architectures[0]!r}")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
