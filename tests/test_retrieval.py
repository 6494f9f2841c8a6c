"""Which rows are found, in which order, and as which passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from conftest import World
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from rag.errors import QuestionError
from rag.ranking import coverage, fused, relevance
from rag.retrieval import Hit, RetrievalOptions, TableRetriever, joined

ROWS = {
    "wolf": "how to hunt a werewolf: take a wolfsbane tincture",
    "swamp": "how to cross a swamp: take tall stilts",
    "code": "spare part XK-4471 fits the pump of the mill",
    "dragon": "how to fight a dragon: take a tower shield",
}


@pytest.fixture
def shop(world: World) -> World:
    world.write(
        pl.DataFrame({"row_id": list(ROWS), "text": list(ROWS.values()), "n": [1, 2, 3, 4]})
    )
    world.sync()
    return world


def retriever(world: World, top_k: int = 4, **options: Any) -> TableRetriever:
    return TableRetriever(world.store, world.embedding, RetrievalOptions(top_k=top_k, **options))


def found(world: World, question: str, **options: Any) -> list[Hit]:
    return retriever(world, **options).retrieve(question)


def keys(hits: Sequence[Hit]) -> list[str]:
    return [h.node.metadata["row_key"] for h in hits]


def test_coverage_is_the_share_of_the_question_by_what_tells_texts_apart() -> None:
    texts = ["a red apple", "a red pear", "a red plum", "a blue plum"]
    shares = coverage("the red apple", texts)
    # "red" is in three of four, "apple" in one; "the" does not count
    assert shares[0] > 3 * shares[1] > 0
    assert shares[1] == shares[2]
    assert shares[3] == 0
    assert coverage("of the", texts) == [0, 0, 0, 0]
    assert coverage("apple", []) == []
    # a word that no candidate holds is missing from all of them
    assert coverage("apple zeppelin", texts)[0] < coverage("apple", texts)[0]


def test_a_question_of_one_word_is_not_all_covered_by_it() -> None:
    texts = ["foul weather on the way", "a map", "a lamp", "a rope of silk and a long sharp hook"]
    assert coverage("What is the weather?", texts)[0] < 0.4
    long = coverage("a rope of silk and a long sharp hook", texts)[3]
    assert long > 1.5 * coverage("What is the weather?", texts)[0]


@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=6))
def test_coverage_stays_a_share(question: str, texts: list[str]) -> None:
    shares = coverage(question, texts)
    assert len(shares) == len(texts)
    assert all(0 <= s <= 1 + 1e-9 for s in shares)


def test_both_ways_count_in_the_fused_score() -> None:
    assert fused(0.85, 0.0) == 0.85
    assert fused(0.85, 0.5) > fused(0.86, 0.0)
    assert fused(0.85, 0.1) < fused(0.9, 0.0)


def test_relevance_grows_with_each_of_its_signs() -> None:
    base = relevance(0.84, [0.84, 0.83], 0.0)
    assert relevance(0.86, [0.86, 0.85], 0.0) > base
    assert relevance(0.84, [0.84, 0.80], 0.0) > base
    assert relevance(0.84, [0.84, 0.83], 0.5) > base
    assert relevance(0.84, [0.84], 0.0) < relevance(1.0, [1.0], 1.0) <= 1
    assert relevance(-1.0, [], 0.0) >= 0


def test_relevance_knows_that_languages_differ() -> None:
    known = {"cosine": 0.84, "cosines": [0.84, 0.83], "covered": 0.1}
    base = relevance(**known)
    assert relevance(**known, asked_in="de", written_in="en") > base, "few words are shared"
    assert relevance(**known, asked_in="en", written_in="en") == base
    assert relevance(**known, asked_in=None, written_in="en") == base
    assert relevance(**known, asked_in="CJK", written_in="CJK") < base, "all is nearer there"


def test_each_mode_scores_by_what_it_searches(shop: World) -> None:
    question = "does XK-4471 fit?"
    both, near, worded = (found(shop, question, mode=m) for m in ("hybrid", "vector", "text"))
    assert keys(both)[0] == keys(worded)[0] == "code"
    assert [h.score for h in near] == [h.cosine for h in near]
    assert all(h.bm25 is None for h in near)
    assert [h.score for h in worded] == [h.bm25 for h in worded]
    assert keys(worded) == ["code"], "no other row holds a word of the question"
    assert both[0].bm25 == worded[0].bm25
    assert all(h.score > h.cosine for h in both if h.bm25 is not None)
    for hits in (both, near, worded):
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        assert all(0 <= h.relevance <= 1 for h in hits)


def test_a_row_far_in_meaning_is_found_by_its_words(world: World) -> None:
    texts = [f"apple pear plum fig {i}" for i in range(200)] + [
        "apple pear plum fig XK-4471 " + " ".join(f"word{i}" for i in range(40))
    ]
    world.write(pl.DataFrame({"row_id": [f"r{i:03}" for i in range(201)], "text": texts}))
    world.sync()
    asked = "apple pear plum fig XK-4471"
    candidates = world.store.search(world.embedding.get_query_embedding(asked), asked, n=20)
    last = next(c for c in candidates if c.node.metadata["row_key"] == "r200")
    assert last.cosine < min(c.cosine for c in candidates[:20]), "not among the nearest"
    assert last.bm25 == max(c.bm25 or 0 for c in candidates)
    exact = world.store.query(
        VectorStoreQuery(
            query_embedding=world.embedding.get_query_embedding(asked),
            similarity_top_k=1,
            doc_ids=["r200"],
        )
    )
    assert exact.similarities == pytest.approx([last.cosine], abs=1e-6)


def test_words_are_found_in_scripts_without_spaces(world: World) -> None:
    world.write(
        pl.DataFrame({"row_id": ["a", "b"], "text": ["龙怕银矛和火把。", "沼泽里用高跷走路。"]})
    )
    world.sync()
    assert keys(found(world, "沼泽怎么走?", mode="text"))[0] == "b"
    assert keys(found(world, "龙怕什么?", mode="text"))[0] == "a"


@pytest.mark.parametrize(
    "question", ["+", '"', "a AND (b OR", "*:*", "text:wolf", "\x00", "'; DROP", "~2^"]
)
def test_search_syntax_in_a_question_is_text(shop: World, question: str) -> None:
    for mode in ("hybrid", "vector", "text"):
        assert len(found(shop, question, mode=mode)) <= 4


def test_an_empty_question_is_refused(shop: World) -> None:
    with pytest.raises(QuestionError, match="empty"):
        found(shop, "  ")


def test_filters_hold_in_every_mode(shop: World) -> None:
    few = MetadataFilters(filters=[MetadataFilter(key="n", operator="<", value=2)])
    none = MetadataFilters(filters=[MetadataFilter(key="n", operator=">", value=9)])
    for mode in ("hybrid", "vector", "text"):
        assert keys(found(shop, "how to cross a swamp", mode=mode, filters=few)) in (["wolf"], [])
        assert found(shop, "how to cross a swamp", mode=mode, filters=none) == []


def test_a_row_of_many_nodes_is_found_once(shop: World) -> None:
    shop.splitter.size = 12
    shop.space = "words again"
    shop.sync()
    hits = found(shop, "take a wolfsbane tincture", top_k=3)
    assert len(keys(hits)) == len(set(keys(hits))) == 3
    assert keys(hits)[0] == "wolf"


def test_nodes_that_touch_become_one_passage(world: World) -> None:
    text = "alpha beta. gamma delta. epsilon zeta"
    world.splitter.size = 12
    world.write(pl.DataFrame({"row_id": ["long", "other"], "text": [text, "nothing of it"]}))
    world.sync()
    best = found(world, "alpha beta gamma delta", top_k=1)[0].node
    assert best.text == text[:24]
    assert (best.start_char_idx, best.end_char_idx) == (0, 24)


def test_neighbours_are_read_with_the_node_found(world: World) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    text = "".join(f"{w:<12}" for w in words)
    world.splitter.size = 12
    world.write(pl.DataFrame({"row_id": ["long"], "text": [text]}))
    world.sync()
    for n, expected in ((1, words[2:5]), (2, words[1:6]), (10, words)):
        node = found(world, "four", mode="text", top_k=1, n_neighbours=n)[0].node
        assert node.text.split() == expected
        assert text[node.start_char_idx : node.end_char_idx] == node.text
    assert found(world, "four", mode="text", top_k=1)[0].node.text.strip() == "four"


def test_rows_with_the_same_passage_are_one_source(world: World) -> None:
    world.write(
        pl.DataFrame({"row_id": ["a", "b", "c"], "text": ["red apple", "red apple", "red plum"]})
    )
    world.sync()
    hits = found(world, "red apple", top_k=2)
    assert len(hits) == 2
    assert {keys(hits)[0], *hits[0].also} == {"a", "b"}
    assert keys(hits)[1] == "c"
    assert hits[1].also == ()


def test_a_reranker_has_the_last_word(shop: World) -> None:
    asked: list[tuple[str, int]] = []

    def by_length(question: str, passages: Sequence[str]) -> list[float]:
        asked.append((question, len(passages)))
        return [float(-len(p)) for p in passages]

    hits = found(shop, "how to hunt a werewolf", top_k=2, rerank=by_length, rerank_rows=3)
    assert asked == [("how to hunt a werewolf", 3)]
    lengths = [len(h.node.text) for h in hits]
    assert lengths == sorted(lengths)
    assert [h.score for h in hits] == [float(-n) for n in lengths]


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=6)


@given(spans)
def test_joined_nodes_are_a_part_of_the_row(pieces: list[tuple[int, int]]) -> None:
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEF"
    nodes = [
        TextNode(id_=str(i), text=text[a : a + n], start_char_idx=a, end_char_idx=a + n)
        for i, (a, n) in enumerate(pieces)
    ]
    whole = joined(nodes[0], nodes[1:])
    assert whole.node_id == "0"
    start, end = whole.start_char_idx, whole.end_char_idx
    assert start is not None
    assert whole.text == text[start:end]
    assert start <= pieces[0][0] < pieces[0][0] + pieces[0][1] <= end
    for a, n in pieces[1:]:  # what touches is held, or lies apart
        assert (start <= a and a + n <= end) or a > end or a + n < start


def test_the_store_fuses_for_llama_index(shop: World) -> None:
    query = VectorStoreQuery(
        query_str="part XK-4471",
        query_embedding=shop.embedding.get_query_embedding("part XK-4471"),
        mode=VectorStoreQueryMode.HYBRID,
        similarity_top_k=2,
    )
    result = shop.store.query(query)
    assert result.nodes is not None
    assert result.similarities is not None
    assert result.nodes[0].metadata["row_key"] == "code"
    hits = found(shop, "part XK-4471", top_k=2)
    assert result.similarities == pytest.approx([h.score for h in hits], abs=1e-6)
