"""What a sync costs: full, by change feed and by comparison, against table size and change size.

    python benchmarks/sync.py                     # the table of the README, about half an hour
    python benchmarks/sync.py --sizes 10000       # one size, about a minute
    python benchmarks/sync.py --throughput        # the share of the time that the model gets

The embedding is a stub in the first two, so that the plumbing is what is measured; the default
model is loaded beside it, so that the peak memory is a user's. Each size is a process of its own.
Every ratio is of two times taken in one run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable, write_deltalake
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

import rag
from rag.index import Index
from rag.mirror import Embedder, Recipe, run, sync
from rag.progress import SyncReport
from rag.table import FeedUnreadable, open_table
from rag.wiring import parts

_SIZES = (10_000, 100_000, 1_000_000)
_CHANGES = (1, 100, 10_000)
_DIMENSION = 384
_N_ROWS_EMBEDDED = 1_500


class Stub(BaseEmbedding):
    """Unit vectors at no cost."""

    _pool: Any = PrivateAttr()

    def __init__(self) -> None:
        super().__init__()
        vectors = np.random.default_rng(0).normal(size=(16_384, _DIMENSION)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._pool = cycle(vectors.tolist())

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [next(self._pool) for _ in texts]

    def _get_text_embedding(self, text: str) -> list[float]:
        return next(self._pool)

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return next(self._pool)


class Whole:
    """Every text is one node."""

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        return [[(0, len(t))] for t in texts]


class Bench:
    """A table of one size and its index."""

    def __init__(self, folder: Path, n_rows: int) -> None:
        self.uri, self.n_rows = str(folder / "table"), n_rows
        self.index = Index(str(folder / "index"))
        stub = Stub()
        self.recipe = Recipe("stub", _DIMENSION, 400, 50, Embedder(lambda: stub, Whole))
        _elsewhere("write", self.uri, n_rows, "")

    def sync(self) -> tuple[SyncReport, float]:
        started = time.perf_counter()
        report = sync(self.index, open_table(self.uri, template="{text}"), self.recipe)
        return report, time.perf_counter() - started

    def change(self, n: int, mark: str) -> None:
        """Change the text of `n` rows, scattered over the table."""
        step = self.n_rows // n
        where = f"row_id % {step} = 0 AND row_id < {step * n}"
        _elsewhere("change", self.uri, n, mark + where)


def _elsewhere(what: str, uri: str, n: int, where: str) -> None:
    """Write the table in a process of its own: its memory is not the sync's."""
    subprocess.run([sys.executable, __file__, "--table", what, uri, str(n), where], check=True)


def write_table(what: str, uri: str, n: str, where: str) -> None:
    """Do what `_elsewhere` was asked for."""
    if what == "write":
        feed = {"delta.enableChangeDataFeed": "true"}
        write_deltalake(uri, rows(0, int(n)), configuration=feed)
    else:
        DeltaTable(uri).update(updates={"text": f"text || '{where[0]}'"}, predicate=where[1:])


def rows(start: int, n: int) -> pl.DataFrame:
    """Return rows of some 25 tokens."""
    ids = pl.int_range(start, start + n, eager=True)
    return pl.DataFrame({"row_id": ids, "price": ids % 97}).with_columns(
        text=pl.format(
            "Row {} is about item {} of shelf {}, which costs {} and was counted on day {} by hand",
            "row_id",
            pl.col("row_id") * 7 % 10_007,
            pl.col("row_id") % 101,
            "price",
            pl.col("row_id") % 365,
        )
    )


def one_size(n_rows: int) -> dict[str, Any]:
    """Measure one table size."""
    # the default model is in memory, as it is for a user
    model = parts.load_embedding(rag.Settings())
    model.get_text_embedding("warm-up")
    by_feed = run.by_feed
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), n_rows)
        report, full_s = bench.sync()
        assert report.n_added == n_rows
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found: dict[str, Any] = {"rows": n_rows, "full_s": full_s, "full_peak_mb": peak_mb}
        for n in (n for n in _CHANGES if n < n_rows):
            for way, follow in (("feed", by_feed), ("table", _unreadable)):
                bench.change(n, way[0])
                run.by_feed = follow
                report, seconds = bench.sync()
                assert (report.read, report.n_updated) == (way, n), report
                found[f"{way}_{n}_s"] = seconds
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return found


def _unreadable(*_: object, **__: object) -> None:
    raise FeedUnreadable("switched off by the benchmark")


def throughput() -> None:
    """Compare a full build with the embedding engine alone on the same texts."""
    settings = rag.Settings()
    model, splitter = parts.load_embedding(settings), parts.load_splitter(settings)
    frame = rows(0, _N_ROWS_EMBEDDED)
    model.get_text_embedding_batch(frame["text"].head(64).to_list())
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/table"
        write_deltalake(uri, frame)
        recipe = Recipe("e5", _DIMENSION, 400, 50, Embedder(lambda: model, lambda: splitter))

        def build(n: int) -> Callable[[], object]:
            index = Index(f"{folder}/index{n}")
            return lambda: sync(index, open_table(uri, template="{text}"), recipe)

        engine_s, build_s = [], []
        for n in range(2):  # in turns: the machine is shared
            engine_s.append(_timed(lambda: model.get_text_embedding_batch(frame["text"].to_list())))
            build_s.append(_timed(build(n)))
    ratio = min(engine_s) / min(build_s)
    print(f"{_N_ROWS_EMBEDDED} rows: the engine alone {min(engine_s):.1f} s, a full build")
    print(f"{min(build_s):.1f} s: {ratio:.2f} of the engine's throughput")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(measured: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the README."""
    names = [f"{n:,} changed" for n in _CHANGES]
    lines = [
        "| rows | full build | peak memory | "
        + " | ".join(f"feed, {n}" for n in names)
        + " | "
        + " | ".join(f"comparison, {n}" for n in names)
        + " |",
        "|--:" * (3 + 2 * len(names)) + "|",
    ]
    for m in measured:
        cells = [f"{m['rows']:,}", f"{m['full_s']:.1f} s", f"{m['peak_mb'] / 1024:.1f} GiB"]
        for way in ("feed", "table"):
            for n in _CHANGES:
                seconds = m.get(f"{way}_{n}_s")
                ratio = m["full_s"] / seconds if seconds else 0
                cells.append(f"{seconds:.2f} s ({ratio:,.0f}x)" if seconds else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=_SIZES)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--table", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--throughput", action="store_true")
    options = parser.parse_args()
    if options.throughput:
        throughput()
    elif options.table:
        write_table(*options.table)
    elif options.one:
        print(json.dumps(one_size(options.one)))
    else:
        measured = []
        for n_rows in options.sizes:
            command = [sys.executable, __file__, "--one", str(n_rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
            print(measured[-1], file=sys.stderr)
        print(table(measured))


if __name__ == "__main__":
    main()
