"""E5 on ONNX Runtime: the export, how it agrees with torch, which engine is taken, and no torch."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import string
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import tiny_e5

import rag
from rag import doctor, weights
from rag.embedding import export, loading, parity
from rag.embedding.onnx_engine import OnnxE5Embedding
from rag.embedding.torch_engine import E5Embedding
from rag.errors import (
    ChecksumMismatch,
    ModelError,
    QuestionError,
    SettingsError,
    WeightsError,
)
from rag.machine import may_have_gpu
from rag.splitting import Splitter
from rag.weights import e5_pack, stamp
from rag.wiring import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockbuster import BlockBuster

REFERENCE = Path(__file__).parent / "data" / "e5_reference.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A tiny model's folder, a cache that holds its export, and what was said while it was made."""
    folder = tmp_path_factory.mktemp("e5")
    e5_pack.repack(tiny_e5.data_file(), folder)
    cache = tmp_path_factory.mktemp("cache")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        fingerprint = weights.embedding_fingerprint(str(folder))
        export.exported(folder, fingerprint, progress=lambda what, *_: said.append(what))
    return folder, cache, said


@pytest.fixture
def folder(
    made: tuple[Path, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The tiny model's folder; the test has a copy of the cache."""
    cache = shutil.copytree(made[1], tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return made[0]


@pytest.fixture
def fingerprint(folder: Path) -> str:
    return weights.embedding_fingerprint(str(folder))


@pytest.fixture
def tiny(folder: Path, fingerprint: str) -> OnnxE5Embedding:
    return OnnxE5Embedding(folder, file=export.exported(folder, fingerprint).file)


def record(fingerprint: str, min_cosine: float) -> None:
    """Write another agreement into the export's folder."""
    found = export.recorded(fingerprint)
    assert found is not None
    file = found.file.with_name(export.MEASURED)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"min_cosine": min_cosine}))
    stamp.write(file.with_name("checksums.json"), {file: stamp.sha256_of(file)})


def distance(one: list[float], other: list[float]) -> float:
    """The tiny model's embeddings are all much alike: only distances between them tell."""
    return float(np.linalg.norm(np.subtract(one, other)))


# --- the export ---


def test_an_export_is_made_once_and_leaves_no_float32_model(
    made: tuple[Path, Path, list[str]], folder: Path, fingerprint: str
) -> None:
    assert [what for what in made[2] if "embedding" in what] == [
        "loading the embedding model for the export",
        "exporting the embedding model",
        "quantising the embedding model",
        "comparing the embedding engines",
    ]
    again: list[str] = []
    found = export.exported(folder, fingerprint, progress=lambda what, *_: again.append(what))
    assert again == []
    names = {path.name for path in found.file.parent.iterdir()}
    assert names == {"model.onnx", "parity.json", "checksums.json"}
    assert export.recorded(fingerprint) == found


def test_what_is_recorded_is_what_the_engines_do(folder: Path, tiny: OnnxE5Embedding) -> None:
    passages = parity.texts(Splitter(folder, overlap=0))
    theirs = parity.embedded(E5Embedding(folder, device="cpu")._embed, passages)
    found = parity.min_cosine(parity.embedded(tiny._embed, passages), theirs)
    recorded = export.recorded(weights.embedding_fingerprint(str(folder)))
    assert recorded is not None
    assert found == pytest.approx(recorded.min_cosine, abs=1e-3)
    assert found < 1


def test_another_pooling_is_another_export(folder: Path, tmp_path: Path, fingerprint: str) -> None:
    by_first_token = shutil.copytree(folder, tmp_path / "copy")
    pooling = {"word_embedding_dimension": tiny_e5.HIDDEN, "pooling_mode": "cls"}
    (by_first_token / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    mean = export.exported(folder, fingerprint)
    first = export.exported(by_first_token, fingerprint)
    assert first.file.parent != mean.file.parent
    text = "x1 Zq8 [k] w; 9"
    found = OnnxE5Embedding(by_first_token, file=first.file).get_text_embedding(text)
    expected = E5Embedding(by_first_token, device="cpu").get_text_embedding(text)
    other = E5Embedding(folder, device="cpu").get_text_embedding(text)
    assert distance(found, expected) < distance(found, other) / 3


def test_a_model_that_cannot_be_exported_says_why_and_leaves_nothing(
    folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError) as caught:
        export.exported(broken, "broken")
    assert "cannot be exported for ONNX Runtime: rag.errors.WeightsNotFound" in str(caught.value)
    assert str(caught.value).endswith("Set RAG_EMBEDDING__ENGINE=torch.")
    assert not list(weights.cache_dir().glob("onnx-broken*/"))


def test_an_export_that_is_killed_is_one_sentence(folder: Path) -> None:
    def kill(what: str, *_: object) -> None:
        if what.startswith("exporting"):
            children = psutil.Process().children()  # other tests may have left a server running
            (child,) = [c for c in children if "rag.embedding.exporting" in c.cmdline()]
            child.kill()

    with pytest.raises(WeightsError, match="was killed; it takes some 4 GB of memory"):
        export.exported(folder, "other", progress=kill)
    assert not list(weights.cache_dir().glob("onnx-other*/"))


def test_a_damaged_export_is_refused_by_every_engine_that_would_take_it(
    folder: Path, fingerprint: str
) -> None:
    file = export.exported(folder, fingerprint).file
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    for engine in ("auto", "onnx"):
        with pytest.raises(ChecksumMismatch, match="Delete the folder"):
            loading.load(folder, fingerprint, engine=engine, device="cpu")


# --- the engine ---


def test_the_engine_agrees_with_torch(folder: Path, tiny: OnnxE5Embedding) -> None:
    theirs = E5Embedding(folder, device="cpu")
    texts = [*string.ascii_letters, *string.digits]
    found = np.array(tiny.get_text_embedding_batch(texts))
    expected = np.array(theirs.get_text_embedding_batch(texts))
    apart = np.linalg.norm(found[:, None] - expected[None], axis=2)
    assert (apart.argmin(axis=1) == np.arange(len(texts))).mean() > 0.9
    question, passage = tiny.get_query_embedding("wolf"), tiny.get_text_embedding("wolf")
    for embedding, literal in ((question, "query: wolf"), (passage, "passage: wolf")):
        assert embedding == tiny._run([tiny._tokenizer.encode(literal).ids])[0].tolist()
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert question != passage
    assert len(question) == tiny.dimension == theirs.dimension == tiny_e5.HIDDEN
    for text in ("wolf", "wolf " * 500, "wolf \ud800", ""):
        for kind in ("query", "document"):
            assert tiny.n_tokens(text, kind) == theirs.n_tokens(text, kind)


def test_a_batch_of_many_lengths_keeps_the_order(tiny: OnnxE5Embedding) -> None:
    letters = random.Random(0)
    texts = ["".join(letters.choices(string.ascii_letters, k=i * 7 % 50 + 1)) for i in range(40)]
    found = np.array(tiny.get_text_embedding_batch(texts))
    alone = np.array([tiny.get_text_embedding(text) for text in texts])
    assert (found @ alone.T).argmax(axis=1).tolist() == list(range(40))
    assert tiny.get_text_embedding_batch([]) == []


def test_texts_beyond_the_window_are_refused_with_both_numbers(tiny: OnnxE5Embedding) -> None:
    assert tiny.get_query_embedding("wolf " * 60)
    with pytest.raises(QuestionError, match=r"has 65 tokens; .* reads at most 64. Ask"):
        tiny.get_query_embedding("wolf " * 61)
    with pytest.raises(ModelError, match=r"has 65 tokens; .* at most 64. Split"):
        tiny.get_text_embedding_batch(["wolf", "wolf " * 61])
    with pytest.raises(ModelError, match="text only"):
        tiny._embed([BytesIO(b"")], "text")


async def test_the_event_loop_does_not_compute(
    folder: Path, fingerprint: str, blockbuster: BlockBuster
) -> None:
    computed_on: set[int] = set()

    class Watched(OnnxE5Embedding):
        def _run(self, tokens: object) -> np.ndarray:
            computed_on.add(threading.get_ident())
            return super()._run(tokens)

    file = (await asyncio.to_thread(export.exported, folder, fingerprint)).file
    model = await asyncio.to_thread(lambda: Watched(folder, file=file))
    text = await model.aget_text_embedding("a wolf")
    assert await model.aget_text_embedding_batch(["a wolf"]) == [text]
    assert await model.aget_query_embedding("a wolf") != text
    assert computed_on
    assert threading.get_ident() not in computed_on


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after a microsecond, so that a race shows in a short test."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_one_model(tiny: OnnxE5Embedding) -> None:
    texts = [f"{'wolf ' * (i % 30)}{i}" for i in range(80)]
    expected = [tiny.get_text_embedding(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tiny.get_text_embedding, texts))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_that_is_no_model_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"broken")
    with pytest.raises(WeightsError, match=r"ONNX Runtime cannot load .*model.onnx.* made anew"):
        OnnxE5Embedding(folder, file=tmp_path / "model.onnx")


# --- which engine ---


@pytest.mark.parametrize(
    ("engine", "device", "expected"),
    [
        ("torch", "cpu", True),
        ("torch", "auto", True),
        ("onnx", "auto", False),
        ("onnx", "cpu", False),
        ("auto", "cpu", False),
        ("auto", "cuda", True),
    ],
)
def test_engine_and_device_decide(engine: str, device: str, expected: bool) -> None:
    assert loading.takes_torch(engine, device) is expected


def test_onnx_on_cuda_is_refused() -> None:
    with pytest.raises(SettingsError, match="'onnx', which runs on the CPU"):
        loading.takes_torch("onnx", "cuda")


def test_a_driver_on_the_path_is_a_sign_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert may_have_gpu()


def test_engines_that_agree_share_a_space_and_others_do_not(fingerprint: str) -> None:
    record(fingerprint, 0.99)
    assert export.space(fingerprint) == fingerprint
    record(fingerprint, 0.9899)
    assert export.space(fingerprint) == f"{fingerprint}+onnx-int8"
    assert export.space("never-exported") == "never-exported"


def test_auto_keeps_to_the_models_own_space(
    folder: Path, fingerprint: str, caplog: pytest.LogCaptureFixture
) -> None:
    def loaded(engine: str) -> str:
        return loading.load(folder, fingerprint, engine=engine, device="cpu").class_name()

    record(fingerprint, 0.995)
    assert loaded("auto") == "OnnxE5Embedding"
    assert caplog.records == []
    record(fingerprint, 0.97)
    assert loaded("auto") == "E5Embedding"
    assert "least cosine 0.970" in caplog.text
    assert loaded("onnx") == "OnnxE5Embedding"
    assert loaded("torch") == "E5Embedding"


def test_auto_takes_torch_where_no_export_can_be_written_and_onnx_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert loading.load(folder, "x", device="cpu").class_name() == "E5Embedding"
    assert "runs on torch, not on ONNX Runtime. Model files cannot be written" in caplog.text
    with pytest.raises(WeightsError, match="set XDG_CACHE_HOME"):
        loading.load(folder, "x", engine="onnx")


def settings_of(folder: Path, engine: str) -> rag.Settings:
    return rag.Settings(embedding={"model": str(folder), "engine": engine, "device": "cpu"})


def test_an_index_of_torch_does_not_answer_for_an_export_that_differs(
    folder: Path, fingerprint: str
) -> None:
    record(fingerprint, 0.97)
    fingerprints = {e: parts.embedding_fingerprint(settings_of(folder, e)) for e in loading.ENGINES}
    own = f"{fingerprint}+onnx-int8"
    assert fingerprints == {"auto": fingerprint, "torch": fingerprint, "onnx": own}
    assert parts.recipe_of(settings_of(folder, "onnx")).embedding == own


def test_the_doctor_says_which_engine_runs_and_how_well(folder: Path, fingerprint: str) -> None:
    def seen(engine: str) -> str:
        return doctor._embedding_engine(settings_of(folder, engine)).found

    record(fingerprint, 0.97)
    assert seen("auto").startswith("torch, not ONNX Runtime: its 8-bit weights")
    assert seen("onnx").endswith("agree with torch to a cosine of 0.970")
    assert seen("torch") == "torch"
    shutil.rmtree(weights.cache_dir())
    assert "first use takes a minute" in seen("auto")


def test_an_export_that_turns_out_to_differ_does_not_answer_for_what_was_begun(
    folder: Path, fingerprint: str, tmp_path: Path
) -> None:
    """As when `onnx` is set first while the index is torch's: nothing is measured until then."""
    record(fingerprint, 0.97)
    found = export.recorded(fingerprint)
    assert found is not None
    elsewhere = found.file.parent.rename(tmp_path / "made by another process")

    def another_process_is_done(what: str, *_: object) -> None:
        if what.startswith("waiting for onnx-"):
            elsewhere.rename(found.file.parent)

    settings = settings_of(folder, "onnx")
    with pytest.raises(ModelError, match="embeds too differently for an index that torch built"):
        parts.load_embedding(settings, another_process_is_done)
    assert parts.load_embedding(settings).class_name() == "OnnxE5Embedding", "as its own index"


# --- the real model ---


@pytest.mark.model
def test_the_default_model_answers_from_indexes_of_either_engine() -> None:
    settings = rag.Settings(embedding={"engine": "onnx", "device": "cpu"})
    model = parts.load_embedding(settings)
    assert parts.embedding_fingerprint(settings) == parts.embedding_fingerprint(rag.Settings())
    for entry in json.loads(REFERENCE.read_text("utf-8"))["texts"]:
        is_query = entry["input_type"] == "query"
        embed = model.get_query_embedding if is_query else model.get_text_embedding
        expected = np.array(entry["embedding"])
        cosine = np.dot(embed(entry["text"]), expected) / np.linalg.norm(expected)
        assert cosine >= parity.MIN_COSINE, entry["text"]


ASK = """
import sys
sys.argv = ["rag", "ask", "What do I need against a werewolf?"]
from rag.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "sentence_transformers", "onnx"} & set(sys.modules)
    print("imported:", sorted(heavy), "onnxruntime" in sys.modules)
"""


@pytest.mark.model
def test_rag_ask_answers_without_torch(in_shop: Path) -> None:
    environment = os.environ | {"RAG_EMBEDDING__DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    assert "wolfsbane" in done.stdout
    assert "imported: [] True" in done.stdout
