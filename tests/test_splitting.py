"""Texts that are longer than the window: spans that fit, cover and end well."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tiny_e5
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rag import weights
from rag.splitting import PASSAGE_PREFIX, Splitter, encodable, window
from rag.weights import e5_pack

ODD = "\ufdfa\0\u200b\u3000\ufeff\u0301\ud800狼。🐺 \n.a"
"""U+FDFA becomes 18 characters, NUL none; marks, CJK, a lone surrogate, an emoji."""


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e5")
    e5_pack.repack(tiny_e5.data_file(), folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Splitter:
    return Splitter(tiny_folder, 40, 8)


@pytest.fixture(scope="module")
def real() -> Splitter:
    return Splitter(weights.embedding_folder("multilingual-e5-small"))


def n_tokens(splitter: Splitter, piece: str) -> int:
    """Count the tokens of a passage as the model sees it."""
    return len(splitter.tokenizer.encode(PASSAGE_PREFIX + piece).ids)


def check(splitter: Splitter, text: str) -> None:
    """Assert what holds for the spans of any text."""
    (spans,) = splitter.spans([text])
    text = encodable(text)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (_, end), (next_start, next_end) in itertools.pairwise(spans):
        assert next_start <= end < next_end, "no gap, and each span brings something new"
    assert all(n_tokens(splitter, text[start:end]) <= splitter.window for start, end in spans)
    if n_tokens(splitter, text) <= splitter.window:
        assert len(spans) == 1


texts = st.one_of(
    st.text(max_size=400),
    st.text(ODD, max_size=400),
    st.lists(st.tuples(st.text(max_size=6), st.integers(1, 200)), max_size=6).map(
        lambda runs: "".join(piece * n for piece, n in runs)
    ),
)


@given(texts)
@example("\ufdfa" * 400)
@example("\0" * 4000)
@example("a" * 4000)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans_of_any_text_fit_cover_and_progress(tiny: Splitter, text: str) -> None:
    check(tiny, text)


@given(texts, st.integers(1, 60), st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_any_chunk_size_and_overlap_come_to_an_end(
    tiny_folder: Path, text: str, chunk_tokens: int, overlap: int
) -> None:
    check(Splitter(tiny_folder, chunk_tokens, overlap), text * 3)


def test_the_window_is_the_smallest_that_the_folder_names(tiny_folder: Path) -> None:
    assert window(tiny_folder) == tiny_e5.WINDOW


def test_a_folder_that_names_no_window_has_berts(tmp_path: Path) -> None:
    assert window(tmp_path) == 512


def test_the_longest_text_that_fits_is_one_span_and_one_token_more_is_two(tiny: Splitter) -> None:
    # "▁passage" and ":" and the two special tokens leave 60 words
    assert tiny.spans(["wolf " * 60]) == [[(0, 300)]]
    assert len(tiny.spans(["wolf " * 61])[0]) == 2


def test_an_empty_text_has_one_empty_span(tiny: Splitter) -> None:
    assert tiny.spans(["", "wolf"]) == [[(0, 0)], [(0, 4)]]


def test_a_span_ends_after_a_sentence_and_the_next_repeats_whole_words(tiny: Splitter) -> None:
    text = "wolf " * 35 + "wolf. " + "wolf " * 40
    (spans,) = tiny.spans([text])
    first, second = (text[start:end] for start, end in spans[:2])
    assert first == "wolf " * 35 + "wolf. "
    assert second.startswith("wolf ")
    # a shared full stop is a token too: 7 words and the stop make 8 tokens
    assert spans[0][1] - spans[1][0] == len("wolf " * 6 + "wolf. ")


def test_without_a_sentence_end_a_span_ends_after_a_word(tiny: Splitter) -> None:
    text = "wolfwolf " * 40
    (spans,) = tiny.spans([text])
    assert len(spans) > 1
    assert all(text[:end].endswith(" ") for _, end in spans)
    assert all(text[start:].startswith("wolfwolf ") for start, _ in spans)


def test_no_span_of_a_text_with_words_is_blank(tiny: Splitter) -> None:
    text = " " * 5000 + "x" * 100
    (spans,) = tiny.spans([text])
    assert len(spans) > 1
    assert all(text[start:end].strip() for start, end in spans)


def test_no_overlap_means_spans_that_touch(tiny_folder: Path) -> None:
    (spans,) = Splitter(tiny_folder, 40, 0).spans(["wolf " * 200])
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]


@pytest.mark.model
@given(texts)
@example("\ufdfa" * 400)
@settings(deadline=None, max_examples=60)
def test_the_real_tokenizers_spans_fit_cover_and_progress(real: Splitter, text: str) -> None:
    check(real, text * 4)


@pytest.mark.model
@pytest.mark.parametrize(
    "unit", ["a", "\ufdfa", "狼", "\0", "\u200b", "e\u0301", "The wolf ran. ", "🐺", "\n"]
)
def test_the_spans_of_a_million_characters_stay_few(real: Splitter, unit: str) -> None:
    text = unit * (1_000_000 // len(unit) // (18 if unit == "\ufdfa" else 1))
    (spans,) = real.spans([text])
    n = len(real.tokenizer.encode(text).ids)
    # each span but the last brings at least half of its tokens anew: linear, not quadratic
    assert len(spans) <= 1 + n / 200
