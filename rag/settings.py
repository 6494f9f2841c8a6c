"""What can be set, where from, and what a mistake is told; it knows no other room.

Order: arguments > `RAG_*` environment (`RAG_TABLE__URI`) > `rag.toml` in the working directory
> defaults (the demo library). A name that no setting has is refused, never ignored.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rag.errors import SettingsError

DEMO_URI = "data/fantasy-library"
CHATS = "data/chats.db"
_PREFIX = "RAG_"
_TOML = "rag.toml"


Mode = Literal["hybrid", "vector", "text"]
"""`hybrid`: by meaning and by words; `vector`: by meaning alone; `text`: by words alone."""
MODES: tuple[Mode, ...] = get_args(Mode)


def _listed(value: object) -> object:
    # a plain name is easier to put into an environment variable than a JSON list
    if not isinstance(value, str):
        return value
    if value.strip().startswith("["):
        return json.loads(value)
    return tuple(part.strip() for part in value.split(",") if part.strip())


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), NoDecode]


def table_name(uri: str) -> str:
    """Return the last part of a table's URI: short, and no path of the server."""
    return PurePosixPath(uri.rstrip("/")).name or uri


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TableSettings(_Group):
    """The Delta table to chat with."""

    uri: str = Field(DEMO_URI, min_length=1)
    """Folder or URL of the Delta table."""
    key: Names | None = None
    """Columns that identify a row, as `a,b` or a JSON list. Unset: `row_id` where the table has
    it, else the row's content; `[]`: always the content."""
    on_bad_key: Literal["refuse", "pick"] = "refuse"
    """What a key that is null or repeats does: `refuse` the sync, or `pick`: of rows that share a
    key the one with the least content hash is kept, rows without a key are left out and counted."""
    template: str = Field("For {Scenario} you should use {Advice}", min_length=1)
    """The text of a row: `{column}` stands for that column's value, `{{` for a brace."""
    version: int | None = Field(None, ge=0)
    """Delta version to mirror and to ask. Unset: the latest to mirror, the mirrored one to ask."""
    storage_options: dict[str, SecretStr] = Field(default_factory=dict)
    """Options for object storage (keys and endpoints), as a JSON object."""


class EmbeddingSettings(_Group):
    """The E5 model that embeds passages and questions."""

    model: str = Field("multilingual-e5-small", min_length=1)
    """`multilingual-e5-small` (offline), a local folder, or the hub name of another E5 model."""
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """What runs the model: `torch`, or `onnx`: ONNX Runtime on 8-bit weights, on a CPU several
    times as fast and without torch. `auto` takes torch on a GPU and onnx elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes CUDA where there is one."""
    chunk_tokens: int = Field(400, ge=32, le=480)
    """A row longer than the model's window is split into nodes of at most this many tokens."""
    chunk_overlap: int = Field(50, ge=0, le=200)
    """Tokens that two neighbouring nodes of one row share; fewer than a node has."""

    @model_validator(mode="after")
    def _overlap_is_less_than_a_node(self) -> Self:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap {self.chunk_overlap} is not less than chunk_tokens "
                f"{self.chunk_tokens}"
            )
        return self


class IndexSettings(_Group):
    """The LanceDB index."""

    uri: str | None = None
    """Folder or URL of the index. Unset: `data/index/<table>`, one for each table."""
    storage_options: dict[str, SecretStr] | None = None
    """Options for object storage, as a JSON object. Unset: the table's."""
    keep_versions: int = Field(10, ge=1)
    """Mirrored Delta versions that can still be asked, the latest ones."""
    tokenizer: Literal["words", "ngrams"] = "words"
    """How the search by words cuts a text: `words`, or `ngrams` of 2 to 4 characters, which finds
    parts of words and of codes, in an index of 7 times the size, 0.2 s a question of 20,000 rows.
    The next sync applies it."""


class RetrievalSettings(_Group):
    """How rows are found."""

    top_k: int = Field(5, ge=1, le=100)
    """Rows a retriever returns."""
    mode: Mode = "hybrid"
    """How rows are found: by meaning and by words, by meaning alone, or by words alone."""
    n_neighbours: int = Field(0, ge=0, le=10)
    """Of a long row, how many nodes before and after the one found are read with it."""
    min_relevance: float = Field(0.7, ge=0, le=1)
    """Below this relevance (0 to 1) the best row counts as no answer: the chat says so."""
    rerank_model: str | None = Field(None, min_length=1)
    """A cross-encoder that orders the best rows anew, a folder or a hub name; it takes seconds on a
    CPU. Unset: none."""
    rerank_rows: int = Field(20, ge=1, le=100)
    """Rows that the cross-encoder reads."""


class LlmSettings(_Group):
    """The language model: a GGUF file in this process, or a server's."""

    model: str = Field("gemma-3-270m", min_length=1)
    """`gemma-3-270m` (offline), another name of the catalogue, or a local `.gguf` file; with
    `llm.base_url` the name that the server knows it by."""
    base_url: str | None = Field(None, pattern="^https?://")
    """An OpenAI-compatible server that runs the model (`http://127.0.0.1:8080/v1`). Unset: the
    model runs in this process."""
    api_key: SecretStr | None = None
    """The server's key."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds without a byte from the server after which a call fails."""
    max_concurrent: int = Field(8, ge=1)
    """Calls to the server at once; more of them queue here."""
    n_ctx: int | None = Field(None, ge=512, le=1 << 24)
    """Context window in tokens. Unset: the catalogue's, or what the model and the memory allow."""
    n_gpu_layers: int = Field(-1, ge=-1, le=10_000)
    """Layers on the GPU; -1 is all of them. A CPU build ignores it."""
    main_gpu: int = Field(0, ge=0, le=15)
    """Of several GPUs, the one that holds what is not split."""
    tensor_split: tuple[NonNegativeFloat, ...] | None = Field(None, min_length=1, max_length=16)
    """Share of the model for each GPU, as a JSON list. Unset: by their memory."""
    cache_mb: int = Field(512, ge=0)
    """Memory for what the model has read of conversations that it may go on with, in MB."""
    prompt_lookup: Literal["auto", "on", "off"] = "auto"
    """Guesses the next words from the prompt, checked by the model; `auto` measures whether it
    pays."""
    n_threads: int | None = Field(None, ge=1, le=512)
    """CPU threads. Unset: one for each physical core."""
    n_passages: int | None = Field(None, ge=1, le=20)
    """Passages put into the prompt. Unset: as many as the catalogue says the model handles."""
    max_tokens: int = Field(160, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0, le=1)
    """0 always takes the likeliest token."""
    seed: int = 0
    """Seed of the sampling when the temperature is above 0."""


class ChatSettings(_Group):
    """The conversation."""

    persona: str = (
        "You are a friendly shopkeeper. You answer questions only from the passages given to you."
    )
    """Who answers; given to models that follow instructions."""
    max_question_chars: int = Field(2000, ge=1)
    """A longer question is refused."""
    history_turns: int = Field(6, ge=0)
    """Earlier turns a model with a chat template sees."""
    min_support: float = Field(0.5, ge=0, le=1)
    """With a smaller share of an answer's claims supported, the reply says so and quotes a row."""


class WebSettings(_Group):
    """The web chat."""

    title: str | None = None
    """Name of the chat. Unset: `Fantasy Shop` for the demo, else the table's name."""
    starters: tuple[str, ...] | None = None
    """Questions offered at the start, as a JSON list. Unset: four, drawn from the table."""
    accent: str | None = Field(None, pattern="^#[0-9a-fA-F]{6}$")
    """Colour of buttons and citations, as `#9a4a12`. Unset: the theme's."""
    database: SecretStr | None = None
    """Where chats and users are kept: a SQLite file, or `postgresql://user:password@host/name`
    (extra `postgres`). Unset: `data/chats.db`."""
    auth: Literal["auto", "local", "password", "header", "oauth"] = "auto"
    """Who may chat. `local`: whoever sits at this machine, without a login; `password`: users of
    `rag user add`; `header`: users that a proxy names; `oauth`: Chainlit's `OAUTH_…` variables.
    `auto` takes what there is: OAuth, the header, passwords, else `local`."""
    auth_header: str | None = Field(None, pattern="^[A-Za-z0-9-]+$")
    """The request header in which a proxy names the user; the proxy must drop the clients' own."""
    oauth_users: Names = ()
    """Who of an OAuth provider may chat, as `ann@example.org`, or `@example.org` for a domain.
    Unset: everybody whom the provider lets in."""
    admins: Names = ()
    """Users of a proxy or of OAuth who may sync, switch the model and see `/stats`."""
    hosts: Names = ()
    """Host names that the chat answers to besides loopback, as `chat.example.org`; `*` is any."""
    metrics_token: SecretStr | None = None
    """What a reader of `/metrics` sends as bearer token. Unset: it answers on loopback only."""
    max_waiting: int = Field(3, ge=1)
    """Questions of one user that may wait at once."""
    max_questions_per_minute: int = Field(30, ge=1)
    """Questions of one user in a minute."""
    grace_s: float = Field(20.0, ge=0)
    """Seconds after a tab is closed until its answer is stopped."""

    switch_model: bool = True
    """Whether an admin may switch the language model, for everyone."""

    @property
    def database_url(self) -> str:
        """Where chats and users are kept; it may hold a password."""
        return CHATS if self.database is None else self.database.get_secret_value()


class Settings(BaseSettings):
    """Everything that can be set; frozen, and checked when it is made.

    Raises:
        SettingsError: a name that no setting has, or a value that does not fit.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        toml_file=_TOML,
        use_attribute_docstrings=True,
    )

    table: TableSettings = Field(default_factory=TableSettings)
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    index: IndexSettings = Field(default_factory=IndexSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)
    llm: LlmSettings = Field(default_factory=LlmSettings)
    chat: ChatSettings = Field(default_factory=ChatSettings)
    web: WebSettings = Field(default_factory=WebSettings)

    def __init__(self, **values: Any) -> None:
        _refuse_unknown_variables()
        try:
            super().__init__(**values)
        except ValidationError as e:
            raise _first_mistake(e.errors(include_url=False)[0]) from e
        except ValueError as e:  # a variable that should hold JSON, a rag.toml that is no TOML
            is_file = isinstance(e, tomllib.TOMLDecodeError)
            what = f"The file {_TOML}" if is_file else "A RAG_… variable"
            hint = "" if is_file else " Lists and objects are written as JSON."
            raise SettingsError(f"{what} cannot be read: {e}.{hint}") from e

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out `.env` and secret files: one file, `rag.toml`, is enough."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def is_demo(self) -> bool:
        """Whether the table is the bundled demo library at its default place."""
        return self.table.uri == DEMO_URI


Leaf = Annotated[tuple[str, str, Any, str], "group, name, default, description"]


def leaves() -> Iterator[Leaf]:
    """Yield each setting: its group, name, default and one-sentence description."""
    for group, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for name, leaf in model.model_fields.items():
            yield (
                group,
                name,
                leaf.get_default(call_default_factory=True),
                " ".join((leaf.description or "").split()),
            )


def variable(group: str, name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{_PREFIX}{group}__{name}".upper()


def _refuse_unknown_variables() -> None:
    # pydantic-settings ignores a mistyped variable in silence, which costs users an hour each
    known = {variable(group, name) for group, name, _, _ in leaves()}
    known |= {f"{_PREFIX}{group}".upper() for group in Settings.model_fields}
    nested = tuple(variable(g, "storage_options") + "__" for g in ("table", "index"))
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(_PREFIX) and upper not in known and not upper.startswith(nested):
            raise SettingsError.unknown(name, known, where="The environment")


def _first_mistake(error: ErrorDetails) -> SettingsError:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = {f"{group}.{leaf}" for group, leaf, _, _ in leaves()} | set(Settings.model_fields)
        return SettingsError.unknown(name, known, where=f"An argument or {Path(_TOML)}")
    is_secret = not {
        "storage_options",
        "api_key",
        "base_url",
        "database",
        "metrics_token",
    }.isdisjoint(path)
    shown = "a secret value" if is_secret else repr(error["input"])
    return SettingsError(f"Setting {name!r} is {shown}: {error['msg'].lower()}.")
