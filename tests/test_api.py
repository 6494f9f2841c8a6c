"""The Python API as its contract says, with the real models."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path

import polars as pl
import pytest
from blockbuster import BlockBuster
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine.types import BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.schema import Document
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

import rag
from rag import wiring
from rag.errors import (
    IndexMismatch,
    IndexNotBuilt,
    QuestionError,
    SettingsError,
    TableNotFound,
    VersionNotMirrored,
)
from rag.wiring import parts

pytestmark = pytest.mark.model
WEREWOLF = "What do I need against a werewolf?"


@pytest.fixture
def settings(in_shop: Path) -> rag.Settings:
    return rag.Settings()


def test_documents_are_the_rows(settings: rag.Settings) -> None:
    documents = rag.documents(settings)
    assert isinstance(documents, Iterator)
    first = next(documents)
    assert isinstance(first, Document)
    assert first.text.startswith("For ")
    assert " you should use " in first.text
    assert first.metadata["table_version"] == 3
    assert len(list(documents)) + 1 >= 150
    assert len(list(rag.documents(settings, version=0))) < len(list(rag.documents(settings)))


def test_syncing_again_does_nothing(settings: rag.Settings) -> None:
    report = rag.sync(settings)
    assert (report.n_added, report.n_updated, report.n_deleted, report.n_embedded) == (0, 0, 0, 0)
    assert report.table_version == 3
    assert report.n_unchanged >= 150


def test_the_retriever_finds_typed_rows(settings: rag.Settings) -> None:
    retriever = rag.retriever(settings, top_k=3)
    assert isinstance(retriever, BaseRetriever)
    hits = retriever.retrieve(WEREWOLF)
    assert len({h.node.metadata["row_key"] for h in hits}) == 3
    row = hits[0].node.metadata
    assert "werewolf" in row["Scenario"]
    assert row["row_key"] == row["row_id"]
    assert row["table_uri"] == "data/fantasy-library"
    assert isinstance(row["price_gold"], Decimal)
    assert isinstance(row["added_on"], dt.date)
    assert isinstance(row["in_stock"], bool)
    assert row["danger"] in range(1, 6)
    cheap = MetadataFilters(filters=[MetadataFilter(key="price_gold", operator="<", value=50)])
    found = rag.retriever(settings, top_k=5, filters=cheap).retrieve(WEREWOLF)
    assert found
    assert all(h.node.metadata["price_gold"] < 50 for h in found)
    none = MetadataFilters(filters=[MetadataFilter(key="danger", operator=">", value=5)])
    assert rag.retriever(settings, filters=none).retrieve(WEREWOLF) == []


def test_an_answer_cites_its_row(settings: rag.Settings) -> None:
    engine = rag.query_engine(settings)
    assert isinstance(engine, BaseQueryEngine)
    response = engine.query(WEREWOLF)
    assert "wolfsbane" in str(response).lower()
    assert response.metadata["refused"] is False
    assert response.metadata["table_version"] == 3
    assert response.metadata["citations"]
    for citation in response.metadata["citations"]:
        node = response.source_nodes[citation["n"] - 1].node
        assert node.metadata["row_key"] == citation["row_key"]
        assert node.text[citation["start"] : citation["end"]].strip()


def test_off_topic_is_refused(settings: rag.Settings) -> None:
    response = rag.query_engine(settings).query("What does the HTTP status code 404 mean?")
    assert response.metadata["refused"] is True
    assert response.source_nodes == []


async def test_a_chat_streams_and_remembers(
    settings: rag.Settings, blockbuster: BlockBuster
) -> None:
    chat = await asyncio.to_thread(rag.chat_engine, settings)
    assert isinstance(chat, BaseChatEngine)
    stream = await chat.astream_chat(WEREWOLF)
    assert isinstance(stream, StreamingAgentChatResponse)
    pieces = [piece async for piece in stream.async_response_gen()]
    assert len(pieces) > 5
    assert "wolfsbane" in "".join(pieces).lower()
    assert stream.metadata["citations"]
    answer = await chat.achat("And how much does it cost?")
    assert "werewolf" in answer.source_nodes[0].node.text
    chat.reset()
    assert chat.chat_history == []


def test_engines_share_the_models(settings: rag.Settings) -> None:
    first, second = parts.load_llm(settings), parts.load_llm(rag.Settings())
    assert first is second
    assert parts.load_embedding(settings) is parts.load_embedding(rag.Settings())


def test_a_model_is_loaded_once_while_anything_uses_it() -> None:
    class Model:
        """Anything that can be referred to weakly."""

    loaded: list[str] = []

    def get(name: str) -> Model:
        return parts._shared("test", (name,), lambda: loaded.append(name) or Model())

    a, b = get("a"), get("b")
    assert get("a") is a
    assert get("b") is b
    assert loaded == ["a", "b"]


def test_the_first_users_table_needs_only_its_uri(
    write_table: Callable[..., str], in_shop: Path
) -> None:
    uri = write_table(
        pl.DataFrame(
            {
                "Scenario": ["exploring a dark cave", "riding out a storm at sea"],
                "Advice": ["a torch of ever-burning pitch", "a rope of mermaid hair"],
            }
        )
    )
    settings = rag.Settings(table={"uri": uri})
    assert rag.sync(settings).n_added == 2
    (hit, _) = rag.retriever(settings).retrieve("What do I take into a cave?")
    assert hit.node.text == (
        "For exploring a dark cave you should use a torch of ever-burning pitch"
    )
    assert hit.node.metadata["row_key"].startswith("h:")
    assert hit.title == "exploring a dark cave"
    assert "torch" in str(rag.query_engine(settings).query("What do I take into a dark cave?"))


def test_what_does_not_fit_the_index_is_refused(settings: rag.Settings) -> None:
    with pytest.raises(IndexMismatch, match="template 'For .*settings say '{Advice}'.*rag sync"):
        rag.retriever(rag.Settings(table={"template": "{Advice}"}))
    index = wiring.index_uri(settings)
    with pytest.raises(IndexMismatch, match="table 'data/fantasy-library', but .*'elsewhere'"):
        rag.retriever(rag.Settings(table={"uri": "elsewhere"}, index={"uri": index}))
    with pytest.raises(VersionNotMirrored, match="mirrors version 3 of the table, not 1"):
        rag.chat_engine(settings, version=1)
    with pytest.raises(IndexMismatch, match="embedding.chunk_tokens 400"):
        rag.retriever(rag.Settings(embedding={"chunk_tokens": 100}))
    rag.query_engine(settings, version=3)


def test_what_is_not_there_is_one_sentence(tmp_path: Path, in_shop: Path) -> None:
    settings = rag.Settings(table={"uri": str(tmp_path / "none")})
    with pytest.raises(TableNotFound):
        rag.sync(settings)
    with pytest.raises(TableNotFound):
        list(islice(rag.documents(settings), 1))
    with pytest.raises(IndexNotBuilt, match="rag sync"):
        rag.query_engine(settings)


def test_a_question_beyond_the_window_is_refused(settings: rag.Settings) -> None:
    long = rag.Settings(chat={"max_question_chars": 100_000})
    with pytest.raises(QuestionError, match="tokens"):
        rag.query_engine(long).query("wolf " * 2000)
    with pytest.raises(QuestionError, match="100,000 characters"):
        rag.query_engine(settings).query("x" * 100_000)


def test_settings_change_what_they_say(settings: rag.Settings) -> None:
    short = rag.Settings(llm={"max_tokens": 4})
    answer = str(rag.query_engine(short).query(WEREWOLF))
    assert len(answer.split()) <= 5
    never = rag.Settings(retrieval={"min_relevance": 1.0})
    assert rag.query_engine(never).query(WEREWOLF).metadata["refused"] is True
    two = rag.Settings(llm={"n_passages": 2})
    assert len(rag.query_engine(two).query(WEREWOLF).source_nodes) == 2
    with pytest.raises(SettingsError, match="top_k is 0"):
        rag.retriever(settings, top_k=0)
    one = rag.Settings(retrieval={"top_k": 1})
    assert len(rag.retriever(one).retrieve(WEREWOLF)) == 1
