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

from rag.index import Index
from rag.mirror import Embedder, Options, Recipe
from rag.mirror import pending as mirror_pending
from rag.mirror import sync as mirror_sync
from rag.progress import Progress, SyncReport, silent
from rag.store import NodeStore
from rag.table import Snapshot, open_table

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

    def __init__(
        self, folder: Path | str, template: str = "{text}", options: dict[str, str] | None = None
    ) -> None:
        self.uri, self.template = f"{folder}/table", template
        self.storage_options = options
        self.store = NodeStore(f"{folder}/index", options)
        self.embedding = WordsEmbedding()
        self.splitter = CharSplitter()
        self.key: tuple[str, ...] | None = None
        self.on_bad_key = "refuse"
        self.space = "words"
        self.keep_versions = 10

    @property
    def index(self) -> Index:
        """The index on disk."""
        return self.store.index

    @property
    def recipe(self) -> Recipe:
        """How its rows are embedded."""
        embedder = Embedder(lambda: self.embedding, lambda: self.splitter)
        return Recipe(self.space, DIMENSION, 400, 50, embedder)

    def create(self, frame: pl.DataFrame) -> None:
        """Make the table, with the change data feed on."""
        feed = {"delta.enableChangeDataFeed": "true"}
        write_deltalake(self.uri, frame, configuration=feed, storage_options=self.storage_options)

    def write(self, frame: pl.DataFrame) -> None:
        """Make the table hold this frame, as its next version."""
        write_deltalake(
            self.uri,
            frame,
            mode="overwrite",
            schema_mode="overwrite",
            storage_options=self.storage_options,
        )

    def snapshot(self, version: int | None = None) -> Snapshot:
        """Open the table."""
        return open_table(
            self.uri,
            template=self.template,
            key=self.key,
            on_bad_key=self.on_bad_key,
            version=version,
            storage_options=self.storage_options,
        )

    def sync(
        self, version: int | None = None, *, progress: Progress = silent, **options: object
    ) -> SyncReport:
        """Mirror the table."""
        chosen = Options(is_pinned=version is not None, keep_versions=self.keep_versions, **options)
        return mirror_sync(
            self.index, self.snapshot(version), self.recipe, options=chosen, progress=progress
        )

    def pending(self, version: int | None = None) -> SyncReport:
        """Say what a sync would do."""
        options = Options(is_pinned=version is not None)
        return mirror_pending(self.index, self.snapshot(version), self.recipe, options=options)


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
