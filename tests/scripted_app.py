"""The web chat on fixed rows and a scripted model: `chainlit run tests/scripted_app.py`.

Everything but the words of the model and the choice of rows is the real thing: the engine, the
events, the citations, Chainlit. The unit tests use the same engine in process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from fakes import ScriptedLLM
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from rag.chat import TurnOptions, Turns
from rag.engines import TableChatEngine
from rag.errors import ModelError
from rag.llm.call import Timings, Waiting
from rag.progress import Progress
from rag.provenance import RowView
from rag.retrieval import Hit, TableRetriever
from rag.settings import Settings
from rag.table import ColumnFacts
from rag.web import serve
from rag.web.asking import Asking
from rag.web.composer import Known
from rag.web.conversations import MakeEngine
from rag.web.core import Core
from rag.wiring import Status

WOLFSBANE = "For a werewolf at the mill you should use a silver dagger and a bundle of wolfsbane."
NASTY = '<img src=x onerror="alert(1)"> ![x](http://evil.example/p.png) [y](javascript:alert(1))'
NASTY_ROW = (
    "<iframe src=//bad.test></iframe> ![](http://bad.test/q.gif) **Oars** [f](javascript:f())"
)
ANSWER = "Use a silver dagger and a bundle of wolfsbane. It is a fine day."
LONG = "word " * 400
TEXTS = (
    NASTY,
    "# no heading",
    "Title\n=====",
    "Title\n-----",
    "* no list\n* at all",
    "1. no list\n2) at all",
    "> no quote",
    "**bold** _em_ `code` ~~gone~~",
    "```\nfence\n```",
    "    indented code",
    "| a | b |\n| - | - |\n| 1 | 2 |",
    "<script>alert(1)</script><b>bold</b><!-- note -->",
    "&lt;b&gt; &amp; &#33;",
    "note:this a:b id:abc ::leaf[x]{y=z} 10:30",
    ":::note\nno alert\n:::",
    "http://evil.example/a?b=c https://evil.example www.evil.example me@evil.example",
    "<https://evil.example> [a]: http://evil.example",
    "back\\slash \\* \\n",
    "[1](#cite-9) [^1] - [ ] task",
    "trailing blanks  \nand a line",
)
"""What would be markup in Chainlit's Markdown."""


def hit(n: int, text: str, **columns: Any) -> Hit:
    """Return row `n` as found, less relevant the greater `n` is."""
    metadata = {"table_uri": "data/shop", "table_version": 3, "row_key": f"row-{n}", **columns}
    node = TextNode(id_=f"node-{n}", text=text, metadata=metadata)
    scores = {"score": 0.9, "cosine": 0.9, "bm25": None, "coverage": 0.5}
    return Hit(node=node, relevance=1 - n / 10, title=text[:40], **scores)


HITS = (
    hit(
        1,
        WOLFSBANE,
        Scenario="A werewolf at the mill",
        price_gold=Decimal("12.50"),
        in_stock=True,
        added_on=date(2026, 1, 2),
        note=None,
    ),
    hit(2, NASTY_ROW, Scenario=NASTY_ROW),
)


class FixedRetriever(TableRetriever):
    """Finds the same rows whatever is asked."""

    def __init__(self, hits: tuple[Hit, ...]) -> None:
        BaseRetriever.__init__(self)
        self._hits = hits

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self._hits)


class SlowLLM(ScriptedLLM):
    """Answers a word every `seconds`, after the waits that `queue` tells, and says what it took."""

    seconds: float = 0.0
    queue: Any = ()
    """`Waiting`s, each followed by half a second as in the real queue."""
    timings: Any = None

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        for waiting in self.queue:
            yield CompletionResponse(text="", delta="", raw={"waiting": waiting})
            if kwargs["stop"].wait(0.5):
                return
        text = ""
        for token in super().stream_complete(prompt, formatted, **kwargs):
            yield token
            text = token.text
            time.sleep(self.seconds)
        if self.timings is not None:
            yield CompletionResponse(text=text, delta="", raw={"timings": self.timings})


def engine(
    script: Callable[[str], str] | str,
    *,
    retriever: TableRetriever | None = None,
    seconds: float = 0.0,
    queue: tuple[Waiting, ...] = (),
    timings: Timings | None = None,
) -> TableChatEngine:
    """Return a real chat engine whose model says what `script` says."""
    llm = SlowLLM(script=script, seconds=seconds, queue=queue, timings=timings)
    options = TurnOptions(
        persona="",
        n_passages=2,
        min_relevance=0.5,
        max_question_chars=100,
        max_tokens=160,
        n_ctx=4096,
    )
    turns = Turns(
        retriever or FixedRetriever(HITS),
        llm,
        n_tokens=llm.n_tokens,
        table_version=lambda: 3,
        options=options,
    )
    return TableChatEngine(turns, history_turns=6)


def script(prompt: str) -> str:
    """Return the answer to what a browser test asks."""
    question = prompt.rsplit("Question:", 1)[-1]
    if "markup" in question:
        return "\n\n".join(TEXTS)
    return LONG if "long" in question else ANSWER


class ScriptedCore(Core):
    """Everything but the words of the model and the choice of rows is real."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self._script: Callable[[str], str] | str = script

    def load(self, progress: Progress) -> MakeEngine:
        """Take until there is a file `go`, so that a browser test sees the warm-up."""
        progress("embedding", 120, 165)
        while not Path("go").exists():
            time.sleep(0.05)
        from rag.web import turn  # noqa: F401 – as the real one does

        return self._engine

    def switch(self, name: str, wanted: str, progress: Progress) -> MakeEngine:
        """Load a model that says its own name; `broken` cannot be loaded."""
        if wanted == "broken":
            raise ModelError("Model 'broken' cannot be loaded.")
        self._script = f"I am {wanted}."
        return self._engine

    def known_models(self) -> list[str]:
        """Return a model, one in a folder, and one that cannot be loaded."""
        return ["small", "folder/large", "broken"]

    def know(self) -> Known:
        """Return a column and two versions."""
        stock = ColumnFacts("in_stock", "boolean")
        return Known([stock], [(3, None), (2, None)])

    def status(self) -> Status:
        """Say that the table has moved on."""
        return Status(
            table_uri="data/shop",
            table_version=5,
            table_problem=None,
            index_uri="data/index",
            index_version=3,
            n_rows=2,
            n_nodes=2,
            n_blank=0,
            embedding_model="words",
            llm="small",
            index_bytes=0,
            models_bytes=0,
            mirrored_versions=[2, 3],
            changed={"added": 340, "updated": 0, "deleted": 0},
            building=None,
            problem=None,
        )

    def row(self, key: str, version: int | None) -> RowView:
        """Return a row that was deleted since."""
        found = next(h for h in HITS if h.node.metadata["row_key"] == key)
        ours = {"table_uri", "table_version", "row_key"}
        return RowView(
            table_uri="data/shop",
            table_version=version or 3,
            row_key=key,
            row_version=1,
            text=found.text,
            columns={k: v for k, v in found.node.metadata.items() if k not in ours},
            read_from="table",
            latest_version=5,
            fate="deleted",
            changes=[],
        )

    def hits(self, query: str, asking: Asking) -> list[Hit]:
        """Return the same rows whatever is searched for."""
        return list(HITS)

    def examples(self, n: int) -> tuple[str, ...]:
        """Return a question to begin with."""
        return ("What helps against a werewolf?",)

    def _engine(self, asking: Asking, *, user: str, conversation: str) -> TableChatEngine:
        pace = Path("pace")
        return engine(self._script, seconds=float(pace.read_text()) if pace.exists() else 0.02)


def main() -> None:
    """Serve the scripted chat."""
    web = {"title": "Test & Shop", "max_questions_per_minute": 1000}
    serve(Settings(web=web, llm={"model": "small"}), ScriptedCore())


# Chainlit loads this file under its path, a test imports it under its name
if __name__.endswith(".py"):
    main()
