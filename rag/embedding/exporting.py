"""Makes the 8-bit ONNX copy of a model folder, and measures how well it agrees with torch.

    python -m rag.embedding.exporting MODEL_FOLDER TARGET_FOLDER

A process of its own: its 4 GB of memory are given back, a kill for want of memory does not take
the chat along, and torch stays out of a process that goes on without it. Says how far it is in
JSON lines on its output; the last line of its standard error is what went wrong.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model
from transformers import PreTrainedModel

from rag.embedding import parity
from rag.embedding.export import MEASURED, MODEL
from rag.embedding.onnx_engine import OnnxE5Embedding
from rag.embedding.torch_engine import E5Embedding
from rag.splitting import Splitter

_OPSET = 17
_BATCH = {0: "text", 1: "token"}
_WIDEST = 128
"""A layer whose inputs spread over more than so many times their root mean square stays in float32:
of 255 steps over that range, one would be half of a usual value. In multilingual-e5-small that is
the second feed-forward matrix of 3 of 12 layers; it lifts the least cosine from .983 to .998."""


class _Embedder(torch.nn.Module):
    """Tokens in, embeddings out: the whole pipeline, whatever pooling the folder asks for."""

    def __init__(self, pipeline: torch.nn.Module) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found = self.pipeline({"input_ids": input_ids, "attention_mask": attention_mask})
        return torch.nn.functional.normalize(found["sentence_embedding"], dim=-1)


def main(model_folder: Path, target: Path) -> None:
    """Write the model and the measured agreement into a folder."""
    _tell("loading the embedding model for the export")
    passages = parity.texts(Splitter(model_folder, overlap=0))
    engine = E5Embedding(model_folder, device="cpu")
    _tell("exporting the embedding model")
    with _spreads(engine._model) as spreads:
        theirs = parity.embedded(engine._embed, passages)
    whole = target / "float32"  # a model beyond 2 GB becomes many files
    whole.mkdir()
    _trace(engine._model, whole / MODEL)
    del engine
    gc.collect()
    _tell("quantising the embedding model")
    wide = _nodes(whole / MODEL, [name for name, spread in spreads.items() if spread > _WIDEST])
    quantize_dynamic(
        _fused(whole / MODEL, keep=wide),
        target / MODEL,
        per_channel=True,  # with one scale a matrix the least cosine is .97
        weight_type=QuantType.QInt8,
        nodes_to_exclude=wide,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what fusing has made
    )
    shutil.rmtree(whole)
    _tell("comparing the embedding engines")
    ours = parity.embedded(OnnxE5Embedding(model_folder, file=target / MODEL)._embed, passages)
    found = {
        "min_cosine": parity.min_cosine(ours, theirs),
        "n_texts": len(ours),
        "in_float32": wide,
    }
    (target / MEASURED).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


@contextlib.contextmanager
def _spreads(pipeline: Any) -> Iterator[dict[str, float]]:
    """Collect how widely the inputs of each linear layer spread, by the layer's name."""
    found: dict[str, float] = {}

    def watch(name: str, module: Any) -> Any:
        def look(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            spread = (inputs[0].max() - inputs[0].min()) / inputs[0].square().mean().sqrt()
            found[name] = max(found.get(name, 0.0), float(spread))

        return module.register_forward_pre_hook(look)

    layers = [(n, m) for n, m in pipeline.named_modules() if isinstance(m, torch.nn.Linear)]
    hooks = [watch(name, module) for name, module in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _nodes(file: Path, layers: Sequence[str]) -> list[str]:
    """Return the multiplications of an ONNX file that are these layers of the torch model.

    `0.model.encoder.layer.4.output.dense` is `/pipeline/…/encoder/layer.4/output/dense/MatMul`:
    the two names begin differently and end alike.
    """
    graph = onnx.load(file, load_external_data=False).graph
    nodes = [node.name for node in graph.node if node.op_type == "MatMul"]

    def n_alike(layer: str, node: str) -> int:
        ours, theirs = layer.split("."), re.split(r"[/.]", node)[:-1]
        pairs = zip(reversed(ours), reversed(theirs), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    return [max(nodes, key=lambda node: n_alike(layer, node)) for layer in layers]


def _fused(file: Path, *, keep: Sequence[str]) -> Path:
    """Return the file with each attention as one node, which a short question notices most.

    A model that is built otherwise stays as it is, and one that would lose a node to keep.
    """
    fused = optimize_model(str(file), model_type="bert", opt_level=0)
    if not set(keep) <= {node.name for node in fused.model.graph.node}:
        return file
    found = file.with_name("fused.onnx")
    fused.save_model_to_file(str(found), use_external_data_format=_is_large(file))
    return found


def _is_large(file: Path) -> bool:
    """Return whether the weights stand in files beside the model's, as those beyond 2 GB do."""
    return any(path != file for path in file.parent.iterdir())


def _trace(pipeline: Any, file: Path) -> None:
    # the attention that torch computes in one call is traced to nodes that `_fused` does not know
    for module in pipeline.modules():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation("eager")
    tokens = torch.full((2, 9), 5)
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    with torch.no_grad():
        torch.onnx.export(
            _Embedder(pipeline).eval(),
            (tokens, mask),
            str(file),
            dynamo=False,  # the other exporter wants one more package
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": _BATCH, "attention_mask": _BATCH, "embedding": {0: "text"}},
        )


def _tell(what: str) -> None:
    print(json.dumps({"doing": what}), flush=True)  # noqa: T201 – the parent process reads it


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the tracer, about shapes that are the same in each call
    logging.disable(logging.WARNING)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
