"""Questions with what is expected of their answers, read from a file or a Delta table.

Knows the formats; does not know the index: whether an expected row exists is asked there.

A record holds `question` (text), `expected` (a row key as citations show it, a list of row keys, or
null where the question should be refused), and where wanted `answer` (a text that a right answer
contains) and `previous` (the earlier questions of the conversation, oldest first). Other fields are
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from rag.errors import QuestionError
from rag.table.batches import frames
from rag.table.opening import open_delta, unreadable

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is there
_NAMES = ("question", "expected", "answer", "previous")
_SHOWN_CHARS = 60


@dataclass(frozen=True)
class Question:
    """A question, and what is expected of its answer."""

    question: str
    expected: tuple[str, ...] = ()
    """Row keys of which any answers it; none where it should be refused."""
    answer: str | None = None
    """What a right answer contains."""
    previous: tuple[str, ...] = ()
    """Earlier questions of the conversation, oldest first."""
    place: str = ""
    """Where it stands, for messages: `questions.jsonl, line 3`."""


def read(uri: str, *, storage_options: Mapping[str, str] | None = None) -> list[Question]:
    """Read questions.

    Args:
        uri: A `.jsonl`, `.json`, `.yaml`, `.yml` or `.parquet` file, or a Delta table: a folder
            that holds `_delta_log`, or a URL.
        storage_options: For a Delta table on object storage.

    Raises:
        QuestionError: a file cannot be read or a record is malformed; says where.
        TableError: the Delta table cannot be read.
    """
    path = Path(uri)
    if "://" in uri or path.is_dir():
        return parse(_delta(uri, dict(storage_options or {}) or None), none_in=uri)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise QuestionError(
            f"The questions at {uri!r} are of no known format: expected a file that ends in "
            f"{', '.join(_READERS)}, or the folder or URL of a Delta table."
        )
    try:
        return parse(reader(path), none_in=uri)
    except OSError as e:
        raise QuestionError(
            f"The questions at {uri!r} cannot be read: {(e.strerror or str(e)).lower()}. "
            "Name a file of questions, or write one with `rag eval --make 50`."
        ) from e


def parse(records: Iterable[tuple[str, Any]], *, none_in: str = "the list") -> list[Question]:
    """Check records and return them as questions.

    Args:
        records: Each with its place, for messages.
        none_in: What is said to be empty where there is no record.

    Raises:
        QuestionError: a record is malformed, or there is none.
    """
    questions = [_question(place, record) for place, record in records]
    if not questions:
        raise QuestionError(f"There is no question in {none_in!r}. Write at least one.")
    return questions


# -- formats ---------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for n, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path.name}, line {n}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as e:
                raise QuestionError(
                    f"{place} is no JSON ({e}): expected one object a line, such as {_EXAMPLE}."
                ) from e


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as e:
        raise QuestionError(
            f"{path.name} is no JSON ({e}): expected a list of objects such as {_EXAMPLE}; "
            "one object a line goes into a .jsonl file."
        ) from e
    return _listed(path, found)


def _yaml(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        found = yaml.load(_text(path), Loader=_LOADER)  # noqa: S506 – a safe loader
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        at = getattr(e, "problem_mark", None)
        where = f", line {at.line + 1}" if at else ""
        told = getattr(e, "problem", None) or str(e)
        raise QuestionError(
            f"{path.name}{where} is no YAML ({told}): expected a list of mappings such as "
            f"{_EXAMPLE}."
        ) from e
    return _listed(path, found)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb"):  # polars' own words for a missing file are many
        pass
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as e:
        raise QuestionError(f"{path.name} is no Parquet file that can be read: {e}.") from e
    return _rows(path.name, [frame])


def _delta(uri: str, options: dict[str, str] | None) -> Iterator[tuple[str, Any]]:
    delta = open_delta(uri, None, options)
    return _rows(uri, frames(delta.scan, lambda e: unreadable(uri, delta.version(), e)))


def _rows(name: str, tables: Iterable[pl.DataFrame]) -> Iterator[tuple[str, Any]]:
    n = 0
    for frame in tables:
        known = frame.select(c for c in _NAMES if c in frame.columns)
        for record in known.iter_rows(named=True):
            n += 1
            yield f"{name}, row {n}", record


_READERS = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".parquet": _parquet,
}
_EXAMPLE = '{"question": "Who sells rope?", "expected": "7"}'


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise QuestionError(f"{path.name} is no UTF-8 text ({e}). Save it as UTF-8.") from e


def _listed(path: Path, found: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(found, list):
        raise QuestionError(
            f"{path.name} holds {_shown(found)}: expected a list of records such as {_EXAMPLE}."
        )
    return ((f"{path.name}, record {n}", record) for n, record in enumerate(found, 1))


# -- one record ------------------------------------------------------------------------------------


def _question(place: str, record: Any) -> Question:
    if isinstance(record, Question):
        return record
    if not isinstance(record, Mapping):
        raise _malformed(place, record, f"a record such as {_EXAMPLE}")
    for name in ("question", "expected"):
        if name not in record:
            raise QuestionError(
                f"{place} has no field {name!r}: expected a record such as {_EXAMPLE}; "
                "`expected` is null where the question should be refused."
            )
    question = record["question"]
    if not isinstance(question, str) or not question.strip():
        raise _malformed(place, question, "'question' to be a text")
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise _malformed(place, answer, "'answer' to be a text or null")
    return Question(
        question=question.strip(),
        expected=_expected(place, record["expected"]),
        answer=answer if answer and answer.strip() else None,
        previous=_previous(place, record.get("previous")),
        place=place,
    )


def _expected(place: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    keys = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if not keys:
        raise _malformed(
            place,
            value,
            "'expected' to name a row key, or to be null where the question should be refused",
        )
    for key in keys:
        # a bool is an int to Python; a float's text is seldom the key's
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _malformed(
                place,
                value,
                "'expected' to be a row key (text or a whole number), a list of row keys, or null",
            )
    return tuple(dict.fromkeys(str(key) for key in keys))


def _previous(place: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_list or not all(isinstance(q, str) and q.strip() for q in value):
        raise _malformed(place, value, "'previous' to be a list of texts or null")
    return tuple(value)


def _malformed(place: str, found: Any, expected: str) -> QuestionError:
    return QuestionError(f"{place} holds {_shown(found)}: expected {expected}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
