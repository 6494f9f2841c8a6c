"""E5 in process: prefixes, windows, batches, threads, and parity with the package's own vectors."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_e5

from rag import weights
from rag.embedding.e5 import token_batches
from rag.embedding.torch_engine import E5Embedding
from rag.errors import ModelError, QuestionError, WeightsNotFound
from rag.weights import e5_pack

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).parent / "data" / "e5_reference.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e5")
    e5_pack.repack(tiny_e5.data_file(), folder)
    return folder


@pytest.fixture(scope="module")
def tiny(folder: Path) -> E5Embedding:
    return E5Embedding(folder, device="cpu")


@pytest.fixture(scope="module")
def real() -> E5Embedding:
    return E5Embedding(weights.embedding_folder("multilingual-e5-small"), device="cpu")


def mean_pooled(model: E5Embedding, text: str) -> np.ndarray:
    """Embed a literal string by hand: the model's outputs, averaged, of length 1."""
    transformer = model._model[0]
    tokens = transformer.tokenizer(text, return_tensors="pt")
    output = transformer.auto_model(**tokens).last_hidden_state.detach().numpy()[0]
    mean = output.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_the_string_that_is_embedded_has_the_prefix_and_one_space(tiny: E5Embedding) -> None:
    question = tiny.get_query_embedding("wolf")
    passage = tiny.get_text_embedding("wolf")
    np.testing.assert_allclose(question, mean_pooled(tiny, "query: wolf"), atol=1e-6)
    np.testing.assert_allclose(passage, mean_pooled(tiny, "passage: wolf"), atol=1e-6)
    assert not np.allclose(question, passage, atol=1e-3)


def test_all_ways_in_give_the_same_embedding(tiny: E5Embedding) -> None:
    expected = tiny.get_text_embedding("a wolf")

    async def others() -> list[list[float]]:
        return [
            await tiny.aget_text_embedding("a wolf"),
            *await tiny.aget_text_embedding_batch(["a wolf"]),
        ]

    for found in [*asyncio.run(others()), *tiny.get_text_embedding_batch(["a wolf"])]:
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(expected) == tiny.dimension == tiny_e5.HIDDEN
    assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)


def test_a_batch_of_many_lengths_keeps_the_order(tiny: E5Embedding) -> None:
    texts = [f"{'wolf ' * (i * 7 % 50)}{i}" for i in range(40)]
    found = tiny.get_text_embedding_batch(texts)
    alone = [tiny.get_text_embedding(text) for text in texts]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_no_texts_are_no_embeddings(tiny: E5Embedding) -> None:
    assert tiny.get_text_embedding_batch([]) == []


def test_token_batches_sort_and_stay_within_the_budget() -> None:
    counts = [5, 50, 7, 300, 6, 40]
    found = list(token_batches(counts, max_tokens=100))
    assert found == [[0, 4, 2], [5, 1], [3]]


def test_n_tokens_counts_prefix_and_special_tokens(tiny: E5Embedding) -> None:
    # <s> ▁query : ▁wolf </s>
    assert tiny.n_tokens("wolf", "query") == 5
    assert tiny.n_tokens("wolf wolf", "document") == 6
    assert tiny.n_tokens("wolf " * 500, "query") == 504, "counting never cuts"


def test_a_question_beyond_the_window_is_refused_with_both_numbers(tiny: E5Embedding) -> None:
    assert tiny.get_query_embedding("wolf " * 60)
    with pytest.raises(
        QuestionError, match=r"has 65 tokens; the embedding model reads at most 64. Ask"
    ):
        tiny.get_query_embedding("wolf " * 61)
    with pytest.raises(QuestionError):
        asyncio.run(tiny.aget_query_embedding("wolf " * 61))


def test_a_passage_beyond_the_window_is_never_cut(tiny: E5Embedding) -> None:
    with pytest.raises(ModelError, match=r"has 65 tokens; .* at most 64. Split"):
        tiny.get_text_embedding_batch(["wolf", "wolf " * 61])


def test_a_lone_surrogate_is_embedded_as_a_question_mark(tiny: E5Embedding) -> None:
    assert tiny.get_query_embedding("wolf \ud800") == tiny.get_query_embedding("wolf ?")


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after a microsecond, so that a race shows in a short test."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_one_model(tiny: E5Embedding) -> None:
    texts = [f"{'wolf ' * (i % 30)}{i}" for i in range(80)]
    expected = tiny.get_text_embedding_batch(texts)
    long = "wolf " * 500

    def work(i: int) -> tuple[int, list[float]]:
        # encoding sets the tokenizer to cut, counting sets it not to
        return tiny.n_tokens(long, "query"), tiny.get_text_embedding(texts[i])

    with ThreadPoolExecutor(8) as pool:
        counts, found = zip(*pool.map(work, range(len(texts))), strict=True)
    assert set(counts) == {504}
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_loading_and_embedding_make_no_attempt_at_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, to: attempts.append(to))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *to, **_: attempts.append(to))
    E5Embedding(folder, device="cpu").get_query_embedding("wolf")
    assert attempts == []


def test_loading_draws_nothing_and_makes_no_folder_of_llama_index(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    E5Embedding(folder, device="cpu").get_query_embedding("wolf")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_loaded_is_one_error(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsNotFound, match="cannot be loaded as an embedding model"):
        E5Embedding(tmp_path, device="cpu")


@pytest.mark.model
def test_the_repacked_model_gives_the_packages_own_vectors(real: E5Embedding) -> None:
    reference = json.loads(REFERENCE.read_text("utf-8"))["texts"]
    assert len(reference) >= 15
    for entry in reference:
        is_query = entry["input_type"] == "query"
        embed = real.get_query_embedding if is_query else real.get_text_embedding
        expected = np.array(entry["embedding"])
        cosine = np.dot(embed(entry["text"]), expected) / np.linalg.norm(expected)
        assert cosine >= 0.999, entry["text"]


@pytest.mark.model
def test_the_real_model_prefers_the_passage_that_answers(real: E5Embedding) -> None:
    passages = [
        "For a vampire in a crypt you should use garlic, a mirror and a stake.",
        "For a werewolf at full moon you should use silver and wolfsbane.",
        "For a frozen lake you should use spiked boots and a long rope.",
    ]
    scores = np.array(real.get_text_embedding_batch(passages)) @ np.array(
        real.get_query_embedding("How do I defend myself from a wolf-man?")
    )
    assert int(scores.argmax()) == 1
