"""How fast the models are on this machine: measured with the settings' own, and written down.

Knows settings, the models' public calls and a small JSON file in the cache; does not know why a
model is as fast as it is. Texts of the demo library stand in for rows.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rag.errors import RagError
from rag.llm.call import Timings
from rag.progress import Progress, silent
from rag.settings import Settings
from rag.wiring.answering import retriever
from rag.wiring.parts import load_embedding, load_llm

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

_TURN_PROMPT_TOKENS = 350
_TURN_ANSWER_TOKENS = 60
"""A turn of the demo: what is new in its prompt, and a long sentence of an answer."""
_N_RUNS = 3
_N_TEXTS = 64
_N_QUERIES = 8
_GO_ON = "\n\nA long story about all of them, in many sentences:\n"
_COPY = "\n\nThe first of them once more, word for word:\n"


@dataclass(frozen=True)
class LlmSpeed:
    """How fast a language model reads and writes here."""

    date: str
    version: str
    """Of what runs it: llama-cpp-python's, or the server's address."""
    n_threads: int | None
    """None: a server's."""
    prompt_tokens_per_s: float | None
    """None where answers came too fast to tell."""
    decode_tokens_per_s: float | None
    """None where the model had nothing to say."""
    copied_tokens_per_s: float | None
    """Of an answer that repeats a passage; None where nothing was guessed from the prompt."""
    accepted_share: float | None
    """Of the tokens guessed from the prompt, the share that was right."""


@dataclass(frozen=True)
class EmbeddingSpeed:
    """How fast an embedding model is here."""

    date: str
    version: str
    """LlamaIndex's name of the class that runs it."""
    texts_per_s: float
    """Rows of some 40 tokens."""
    query_ms: float


@dataclass(frozen=True)
class Bench:
    """What a turn costs here, and why."""

    llm: str
    llm_speed: LlmSpeed
    embedding: str
    embedding_speed: EmbeddingSpeed
    retrieval_ms: float | None
    """The question's embedding and the search; None where there is no index."""
    first_word_s: float | None
    turn_s: float | None
    """Seconds to the last of 60 tokens, with 350 new ones in the prompt."""
    busy_share: float
    """Of the CPU, what other programs used meanwhile, a server of models among them."""


def bench(settings: Settings, *, progress: Progress = silent) -> Bench:
    """Measure the settings' models, write the figures down and say what a turn costs.

    Args:
        settings: Which models; with `llm.base_url` the server's is measured.
        progress: Told what is being done.

    Raises:
        WeightsError: a model is not here and cannot be fetched.
        ModelError: a model cannot be loaded, or the server cannot be reached.
    """
    before = _cpu()
    embedding_speed = _embedding_speed(settings, progress)
    retrieval_ms = _retrieval_ms(settings, progress)
    llm_speed = _llm_speed(settings, progress)
    others_s, all_s = (now - then for now, then in zip(_cpu(), before, strict=True))
    _write_down("embedding", settings.embedding.model, asdict(embedding_speed))
    _write_down("llm", llm_name(settings), asdict(llm_speed))
    first_word_s, turn_s = None, None
    if llm_speed.prompt_tokens_per_s and llm_speed.decode_tokens_per_s:
        waited_ms = embedding_speed.query_ms if retrieval_ms is None else retrieval_ms
        first_word_s = waited_ms / 1000 + _TURN_PROMPT_TOKENS / llm_speed.prompt_tokens_per_s
        turn_s = first_word_s + _TURN_ANSWER_TOKENS / llm_speed.decode_tokens_per_s
    return Bench(
        llm=settings.llm.model,
        llm_speed=llm_speed,
        embedding=settings.embedding.model,
        embedding_speed=embedding_speed,
        retrieval_ms=retrieval_ms,
        first_word_s=first_word_s,
        turn_s=turn_s,
        busy_share=others_s / all_s if all_s else 0.0,
    )


def llm_name(settings: Settings) -> str:
    """Return the name of the language model, and of the server that runs it."""
    url = settings.llm.base_url
    return settings.llm.model if url is None else f"{settings.llm.model} at {server_name(url)}"


def server_name(url: str) -> str:
    """Return a server's URL without what may be secret in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def llm_speeds() -> dict[str, LlmSpeed]:
    """Return what was measured on this machine, by the model's name."""
    return _read("llm", LlmSpeed)


def embedding_speeds() -> dict[str, EmbeddingSpeed]:
    """Return what was measured on this machine, by the model's name."""
    return _read("embedding", EmbeddingSpeed)


@dataclass
class _Sums:
    """Tokens and seconds of several calls."""

    n_prompt: int = 0
    prompt_s: float = 0.0
    n_decoded: int = 0
    decode_s: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def prompt_rate(self) -> float | None:
        """Tokens read in a second."""
        return self.n_prompt / self.prompt_s if self.n_prompt and self.prompt_s else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens written in a second."""
        return self.n_decoded / self.decode_s if self.n_decoded and self.decode_s else None


def _llm_speed(settings: Settings, progress: Progress) -> LlmSpeed:
    progress("loading the language model", 0, 0)
    llm = load_llm(settings, progress)
    rows = _texts()
    n_wanted = min(_TURN_PROMPT_TOKENS, llm.metadata.context_window // 2)
    free, copied = _Sums(), _Sums()
    # the first call also brings the weights into memory
    _add_call(_Sums(), llm, _prompt(rows, -1, llm.n_tokens, n_wanted) + _GO_ON, max_tokens=8)
    for i in range(2 * _N_RUNS):
        progress("measuring the language model", i, 2 * _N_RUNS)
        # another beginning each time: nothing that was read for an earlier prompt helps
        prompt = _prompt(rows, i, llm.n_tokens, n_wanted)
        sums, order = (free, _GO_ON) if i < _N_RUNS else (copied, _COPY)
        _add_call(sums, llm, prompt + order, max_tokens=_TURN_ANSWER_TOKENS)
    is_drafted = copied.n_drafted > 0
    return LlmSpeed(
        date=date.today().isoformat(),  # noqa: DTZ011  # the day on the user's calendar
        version=_version(settings),
        n_threads=_n_threads(settings),
        prompt_tokens_per_s=free.prompt_rate,
        decode_tokens_per_s=free.decode_rate,
        copied_tokens_per_s=copied.decode_rate if is_drafted else None,
        accepted_share=copied.n_accepted / copied.n_drafted if is_drafted else None,
    )


def _add_call(sums: _Sums, llm: Any, prompt: str, *, max_tokens: int) -> None:
    """Let the model go on with a prompt, and add what that took."""
    began = time.perf_counter()
    first_s, raw = 0.0, None
    for response in llm.stream_complete(prompt, max_tokens=max_tokens):
        if response.delta and not first_s:
            first_s = time.perf_counter() - began
        raw = response.raw
    ended_s = time.perf_counter() - began
    told = raw if isinstance(raw, dict) else {}
    timings = told.get("timings") or Timings()
    # a server tells some of it or nothing: the clock on this side stands in, queue included
    n_prompt = timings.n_evaluated or told.get("n_prompt_tokens") or llm.n_tokens(prompt)
    n_tokens = timings.n_tokens or told.get("n_tokens") or 0
    sums.n_prompt += n_prompt
    sums.prompt_s += timings.prompt_s if timings.prompt_s is not None else first_s or ended_s
    if n_tokens > 1:
        sums.n_decoded += n_tokens - 1
        clocked = ended_s - first_s
        sums.decode_s += timings.decode_s if timings.decode_s is not None else clocked
    sums.n_drafted += timings.n_drafted
    sums.n_accepted += timings.n_accepted


def _prompt(rows: Sequence[str], i: int, n_tokens: Callable[[str], int], n_wanted: int) -> str:
    """Return rows of about as many tokens as wanted, other ones first for each `i`."""
    n_each = max(1, n_tokens(rows[i]))
    n_rows = max(1, n_wanted // n_each)
    start = (i * n_rows) % len(rows)
    return "\n".join((*rows[start:], *rows[:start])[:n_rows])


def _embedding_speed(settings: Settings, progress: Progress) -> EmbeddingSpeed:
    progress("loading the embedding model", 0, 0)
    model = load_embedding(settings, progress)
    texts = _texts()[:_N_TEXTS]
    model.get_text_embedding_batch(texts[:2])  # what is done at the first call only
    progress("measuring the embedding model", 0, 0)
    began = time.perf_counter()
    model.get_text_embedding_batch(texts)
    texts_s = time.perf_counter() - began
    query_s = [_seconds(model, q) for q in _questions()]
    return EmbeddingSpeed(
        date=date.today().isoformat(),  # noqa: DTZ011
        version=model.class_name(),
        texts_per_s=len(texts) / texts_s,
        query_ms=statistics.median(query_s) * 1000,
    )


def _seconds(model: BaseEmbedding, query: str) -> float:
    began = time.perf_counter()
    model.get_query_embedding(query)
    return time.perf_counter() - began


def _retrieval_ms(settings: Settings, progress: Progress) -> float | None:
    """Return what finding rows takes; None where there is no index that the settings fit."""
    progress("measuring the search", 0, 0)
    with contextlib.suppress(RagError):
        rows = retriever(settings)
        took = []
        for question in _questions():
            began = time.perf_counter()
            rows.retrieve(question)
            took.append(time.perf_counter() - began)
        return statistics.median(took) * 1000
    return None


def _cpu() -> tuple[float, float]:
    """Return the CPU seconds that other programs have used so far, and all there were."""
    times = psutil.cpu_times()._asdict()
    all_s = sum(s for name, s in times.items() if not name.startswith("guest"))  # counted twice
    idle_s = times["idle"] + times.get("iowait", 0.0)
    own = psutil.Process().cpu_times()
    return all_s - idle_s - own.user - own.system, all_s


def _texts() -> list[str]:
    from rag import demo

    return [f"For {row.scenario} you should use {row.advice}" for row in demo.rows()]


def _questions() -> list[str]:
    from rag import demo

    return [f"What do I need for {row.scenario}?" for row in demo.rows()[:_N_QUERIES]]


def _n_threads(settings: Settings) -> int | None:
    if settings.llm.base_url is not None:
        return None
    from rag.machine import n_physical_cores

    return settings.llm.n_threads or n_physical_cores()


def _version(settings: Settings) -> str:
    if settings.llm.base_url is not None:
        return server_name(settings.llm.base_url)
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


def _record() -> Path:
    from rag import weights

    return weights.cache_dir() / "speeds.json"


def _content() -> dict[str, Any]:
    try:
        found = json.loads(_record().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(kind: str, speed: Callable[..., Any]) -> dict[str, Any]:
    """Return the speeds of a kind; what an older version wrote otherwise counts as not measured."""
    found: dict[str, Any] = {}
    of_kind = _content().get(kind)
    for name, figures in of_kind.items() if isinstance(of_kind, dict) else ():
        with contextlib.suppress(TypeError):
            found[name] = speed(**figures)
    return found


def _write_down(kind: str, name: str, figures: dict[str, Any]) -> None:
    content = _content()
    of_kind = content.get(kind)
    content[kind] = (of_kind if isinstance(of_kind, dict) else {}) | {name: figures}
    record = _record()
    part = record.with_name(f"{record.name}.{os.getpid()}.part")
    # a cache that cannot be written costs the list of models its speeds, nothing else
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(record)
