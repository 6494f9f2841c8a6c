"""Open a Delta table; every failure becomes one sentence of ours.

Knows deltalake and its errors; does not know rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.schema import PrimitiveType

from rag.errors import (
    ColumnNotFound,
    FeatureUnsupported,
    TableError,
    TableNotFound,
    VersionGone,
    VersionNotFound,
    cause,
)

FAILURES = (DeltaError, OSError)
"""What deltalake raises: its own errors, and OSError for object storage."""

_FAR = 1_000_000
"""A version that is not there takes deltalake time in proportion to its number: 60 ms here."""
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}|\\")
_NO_FEED_IN = re.compile(r"[\[\]^|]")
_LACKS = re.compile(r"Unsupported table features required: \[(.+?)\]|Feature '(.+?)' is not supp")
_UNOPENED = re.compile(r"Unable to open file (.+?)(?:: |\n|$)")
_GONE = re.compile(r"Object at location (.+?) not found")


def open_delta(uri: str, version: int | None, options: dict[str, str] | None) -> DeltaTable:
    """Open a version of a Delta table; None is the latest.

    Raises:
        TableNotFound: nothing there, or no Delta table.
        VersionNotFound: it has no such version.
        FeatureUnsupported: it needs a feature that the reader lacks.
        TableError: it cannot be opened for another reason.
    """
    _check_path(uri)
    if "://" in uri.removeprefix("file://"):  # without credentials it would try for three minutes
        options = {"retry_timeout": "15s", **(options or {})}
    if version is not None and version > _FAR:
        latest = open_delta(uri, None, options).version()
        if version > latest:
            raise VersionNotFound(uri, version, latest)
    try:
        return DeltaTable(uri, version=version, storage_options=options)
    except FAILURES as e:
        failure = unreadable(uri, version, e)
        if version is None or type(failure) is not TableError or is_denied(e):
            raise failure from e
        # what is wrong with the latest version is wrong with the table
        raise VersionNotFound(uri, version, open_delta(uri, None, options).version()) from e


def commit_times(latest: DeltaTable, n: int) -> dict[int, datetime]:
    """Return when the last `n` versions were committed, as far as the log tells.

    Args:
        latest: The table at its latest version: at an older one deltalake counts them wrong.
        n: On object storage each is a request.
    """
    try:
        commits = latest.history(n)
    except FAILURES:
        return {}
    return {
        c["version"]: datetime.fromtimestamp(c["timestamp"] / 1000, UTC)
        for c in commits
        if isinstance(c.get("timestamp"), int)
    }


def has_feed(uri: str) -> bool:
    """Return whether deltalake can read the change feed of a table there: some paths break it."""
    return "://" in uri.removeprefix("file://") or not _NO_FEED_IN.search(uri)


def check_columns(
    delta: DeltaTable, uri: str, *, template: Sequence[str], key: Sequence[str]
) -> None:
    """Check that the columns are there, and that those of the key can be written as text.

    Raises:
        ColumnNotFound: the template or the key names a column that is not there.
        TableError: a key column holds binary or nested values.
    """
    fields = {f.name: f.type for f in delta.schema().fields}
    for names, setting in ((template, "RAG_TABLE__TEMPLATE"), (key, "RAG_TABLE__KEY")):
        for name in names:
            if name not in fields:
                raise ColumnNotFound(uri, name, tuple(fields), setting=setting)
    for name in key:
        kind = fields[name]
        if not isinstance(kind, PrimitiveType) or kind.type == "binary":
            raise TableError(
                f"Key column {name!r} of Delta table {uri!r} holds values of type "
                f"{kind}. Set RAG_TABLE__KEY to columns of text, numbers or dates."
            )


def unreadable(
    uri: str, version: int | None, error: BaseException, features: Sequence[str] = ()
) -> TableError:
    """Return what to raise when deltalake cannot open or read a version.

    Args:
        uri: The table.
        version: None while it is being opened.
        error: What deltalake raised.
        features: Names of the table's features, as its protocol has them.
    """
    text = str(error)
    if lacking := _lacking(text, features):
        return FeatureUnsupported(uri, lacking)
    where = f"Delta table {uri!r}" + ("" if version is None else f" at version {version}")
    if is_denied(error):
        found = _UNOPENED.search(text)
        return TableError(
            f"{where} cannot be read: permission is denied{f' for {found[1]!r}' if found else ''}. "
            "Let the user who runs this read the folder and everything in it."
        )
    if isinstance(error, TableNotFoundError) or "does not exist" in text:
        return TableNotFound(uri, told_cause(error))
    if version is None:
        return TableError(f"{where} cannot be opened: {told_cause(error)}.")
    if found := _GONE.search(text):
        return VersionGone(uri, version, f"{found[1]!r} is not there")
    return TableError(
        f"{where} cannot be read: {told_cause(error)}. "
        "Mend the table, or set RAG_TABLE__VERSION to a version that can be read."
    )


def is_denied(error: BaseException) -> bool:
    """Return whether the operating system refused."""
    return "Permission denied" in str(error)


def told_cause(error: BaseException) -> str:
    """Return the part of a deltalake error that tells a reader something."""
    text = cause(error)
    if "No files in log segment" in text:
        return "the folder holds no Delta log"
    # each layer puts its name before the message of the layer below
    return re.sub(r"^((C Data interface|[A-Z]\w+) error: )+", "", text.split(". Known schemes")[0])


def _lacking(text: str, features: Sequence[str]) -> list[str]:
    if "Max catalog version is required" in text:
        return ["catalogManaged"]
    if found := re.search(r"minimum (reader version \d+)", text):
        return [found[1]]
    found = _LACKS.search(text)
    if found is None:
        return []
    # deltalake writes 'TypeWideningPreview' where the protocol has 'typeWidening-preview'
    names = {f.replace("-", "").lower(): f for f in features}
    told = (found[1] or found[2]).split(", ")
    return [names.get(n.replace("-", "").lower(), n[0].lower() + n[1:]) for n in told]


def _check_path(uri: str) -> None:
    found = None if "://" in uri or os.sep != "/" else _ESCAPE.search(uri)
    if found is not None and Path(uri).exists():
        raise TableError(
            f"Delta table {uri!r} cannot be opened: the Delta reader takes {found[0]!r} in a path "
            "for another character. Rename the folder, or set RAG_TABLE__URI to a link without it."
        )
