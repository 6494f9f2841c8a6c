"""What every test has: no stray settings, no network but loopback, a loop that nobody blocks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from deltalake import write_deltalake
from fakes import DIMENSION, CharSplitter, WordsEmbedding

from rag.mirror import Recipe
from rag.mirror import sync as mirror_sync
from rag.progress import SyncReport
from rag.store import NodeStore
from rag.table import open_table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_runtest_setup() -> None:
    import pytest_socket

    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No RAG_* variable and no rag.toml of the developer reaches a test."""
    for name in list(os.environ):
        if name.upper().startswith("RAG_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def blockbuster() -> Iterator[BlockBuster]:
    """Fail when our code blocks the event loop."""
    with blockbuster_ctx("rag") as found:
        yield found


@pytest.fixture
def shared_data() -> Path:
    """The shared test data; present in CI, so its absence there is a failure."""
    if not SHARED.is_dir():
        assert not os.environ.get("CI"), "CI must have the shared test data"
        pytest.skip("the shared test data is not beside this checkout")
    return SHARED


WriteTable = Callable[..., str]


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    """Write a frame as a new version of a Delta table and return its URI."""

    def write(frame: pl.DataFrame, name: str = "table", mode: str = "overwrite") -> str:
        uri = str(tmp_path / name)
        write_deltalake(
            uri, frame, mode=mode, schema_mode="overwrite" if mode == "overwrite" else None
        )
        return uri

    return write


class World:
    """A Delta table with its index, embedded by hashed words."""

    def __init__(self, folder: Path, template: str = "{text}") -> None:
        self.uri, self.template = str(folder / "table"), template
        self.store = NodeStore(str(folder / "index"))
        self.embedding = WordsEmbedding()
        self.splitter = CharSplitter()
        self.key: tuple[str, ...] | None = None
        self.recipe = Recipe("words", DIMENSION, 400, 50)

    def create(self, frame: pl.DataFrame) -> None:
        """Make the table, with the change data feed on."""
        feed = {"delta.enableChangeDataFeed": "true"}
        write_deltalake(self.uri, frame, configuration=feed)

    def write(self, frame: pl.DataFrame) -> None:
        """Make the table hold this frame, as its next version."""
        write_deltalake(self.uri, frame, mode="overwrite", schema_mode="overwrite")

    def sync(self, version: int | None = None, **options: object) -> SyncReport:
        """Mirror the table."""
        snapshot = open_table(self.uri, template=self.template, key=self.key, version=version)
        load = lambda: (self.embedding, self.splitter)  # noqa: E731
        return mirror_sync(self.store, snapshot, self.recipe, load, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A table and its index."""
    return World(tmp_path)


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the demo library and its index, made by the real models."""
    import rag
    from rag import wiring

    folder = tmp_path_factory.mktemp("shop")
    with contextlib.chdir(folder):
        settings = rag.Settings()
        wiring.write_demo(settings)
        assert rag.sync(settings).n_embedded >= 150
    return folder


@pytest.fixture
def in_shop(shop_folder: Path, monkeypatch: pytest.MonkeyPatch, clean_settings: None) -> Path:
    """The working directory is the shop."""
    monkeypatch.chdir(shop_folder)
    return shop_folder
