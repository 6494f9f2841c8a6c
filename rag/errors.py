"""Every error a user can meet, and the sentence it says.

RagError
├── SettingsError            a setting is unknown or has a wrong value
├── TableError               the Delta table cannot be read as asked
│   ├── TableNotFound        nothing there, or it is not a Delta table
│   ├── VersionNotFound      the table has no such version
│   │   └── VersionGone      its files are gone (VACUUM)
│   ├── FeatureUnsupported   the table needs what the reader lacks
│   ├── ColumnNotFound       the template, the key or a filter names a column that is not there
│   ├── RowNotFound          the version has no row of that key
│   ├── RowKeyError          the key columns hold nulls or duplicates
│   └── TableEmpty           no row has any text
├── IndexingError              the LanceDB index cannot be read or written as asked
│   ├── IndexNotBuilt        no sync has completed yet
│   ├── IndexMismatch        built from another table, model or template
│   ├── OtherTable           it mirrors another table than the one that is there
│   ├── VersionNotMirrored   it mirrors other versions of the table
│   └── IndexWriteError      disk full, no permission
├── FilterError              a metadata filter cannot be applied to this table
├── WeightsError             model files
│   ├── WeightsNotFound      no such model, file or package
│   └── ChecksumMismatch     a model file is corrupt
├── ModelError               the language model refused or failed
├── QuestionError            the question is empty or too long
└── AccountsError            chats and users cannot be read or kept

A class takes facts and composes its text: what was expected, what was found, what to do.
This room knows no library: each border (`table`, `store`, `weights`, `llm`) translates the
foreign errors of its own library, chained with `from`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when nothing is close."""
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def cause(error: BaseException) -> str:
    """Return the one line of a foreign error that tells something.

    deltalake nests causes as one indented, coloured line each: the first and the last one tell.
    """
    if why := _storage_cause(str(error)):
        return why
    text = re.sub(r"\x1b\[\d+m", "", str(error)).strip() or type(error).__name__
    first = text.splitlines()[0].rstrip(".! ")
    last = text.rpartition("↳")[2].strip() if "↳" in text else ""
    return f"{first} ({last})" if last else first


_STORAGE_CAUSES = {
    # where a machine of the cloud would get its credentials from
    r"169\.254\.|redentials (not|found|were)|get AWS credentials|NotLoaded": (
        "no credentials were found: name them in the storage options, "
        "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://"
    ),
    r"resolve region": (
        "the region of its bucket is unknown: name it in the storage options, as AWS_REGION"
    ),
    r"NoSuchBucket|ContainerNotFound": "its bucket does not exist",
    r"\b40[13] (Unauthorized|Forbidden)|status: 40[13]\b": "the storage refuses the credentials",
    r"sending request|dns error|timed out|Connect": "the storage cannot be reached",
}
"""What object storage and its HTTP client say, and what that means to a user."""


def _storage_cause(text: str) -> str | None:
    """Return why an object storage was of no use, without its answer, which may repeat secrets."""
    if not re.search(r"<\?xml|<Error>|https?://|redentials|resolve region", text):
        return None
    code = re.search(r"<Code>(\w+)</Code>", text)
    for pattern, why in _STORAGE_CAUSES.items():
        if re.search(pattern, text):
            return why + (f" ({code[1]})" if code else "")
    return None


class RagError(Exception):
    """Any error of ours; its text is one sentence a user can act on."""


class SettingsError(RagError):
    """A setting is unknown or has a value that does not fit."""

    @classmethod
    def unknown(cls, name: str, known: Iterable[str], *, where: str) -> SettingsError:
        """Compose the error for a name that no setting has."""
        close = nearest(name, known)
        hint = f"Did you mean {close!r}?" if close else "See `rag settings` for the names."
        return cls(f"{where} sets {name!r}, which is no setting. {hint}")


class TableError(RagError):
    """The Delta table cannot be read as asked."""


class TableNotFound(TableError):
    """There is no Delta table at the URI."""

    def __init__(self, uri: str, found: str) -> None:
        super().__init__(
            f"There is no Delta table at {uri!r}: {found}. "
            "Set RAG_TABLE__URI to the folder that holds `_delta_log`, "
            "or unset it and run `rag demo` to write the demo library."
        )


class VersionNotFound(TableError):
    """The table has no such version, or no longer."""

    def __init__(self, uri: str, version: int, latest: int | None) -> None:
        known = "" if latest is None else f"; its latest is {latest}"
        super().__init__(
            f"Delta table {uri!r} has no readable version {version}{known}. "
            "Choose one that it has, or none for the latest (RAG_TABLE__VERSION, `--version`)."
        )


class VersionGone(VersionNotFound):
    """The log still names the version, but files that it needs are gone."""

    def __init__(self, uri: str, version: int, found: str) -> None:
        TableError.__init__(
            self,
            f"Delta table {uri!r} at version {version} cannot be read: files of that version are "
            f"gone, by VACUUM or by hand ({found}). "
            "Set RAG_TABLE__VERSION to a version whose files are kept, or unset it for the latest.",
        )


class FeatureUnsupported(TableError):
    """The table needs a feature that the Delta reader lacks."""

    def __init__(self, uri: str, features: Sequence[str]) -> None:
        listed = ", ".join(repr(f) for f in features)
        super().__init__(
            f"Delta table {uri!r} needs {'features' if len(features) > 1 else 'the feature'} "
            f"{listed}, which the Delta reader does not have. Drop it where the table is written "
            "(ALTER TABLE … DROP FEATURE), or copy the rows to a table without it and set "
            "RAG_TABLE__URI to that."
        )


class ColumnNotFound(TableError):
    """A template, a key or a filter names a column that the table lacks."""

    def __init__(self, uri: str, column: str, columns: Sequence[str], *, setting: str) -> None:
        listed = ", ".join(repr(c) for c in columns)
        close = nearest(column, columns)
        hint = f" Did you mean {close!r}?" if close else ""
        super().__init__(
            f"Delta table {uri!r} has no column {column!r}; it has {listed}.{hint} "
            f"Set {setting} to use the columns that are there."
        )


class RowNotFound(TableError):
    """The version has no row of that key."""

    def __init__(self, uri: str, version: int, row_key: str, key: Sequence[str]) -> None:
        named = f"the key is {', '.join(map(repr, key))}" if key else "rows are named by content"
        super().__init__(
            f"Delta table {uri!r} at version {version} has no row {row_key!r}; {named}. "
            "Give the key as a citation shows it, or another version with `--version`."
        )


class RowKeyError(TableError):
    """The key columns do not identify each row."""

    def __init__(
        self,
        uri: str,
        key: Sequence[str],
        *,
        null: tuple[int, Sequence[str]],
        repeated: tuple[int, Sequence[str]],
    ) -> None:
        problems = [
            f"{what} in {n:,} {'row' if n == 1 else 'rows'} "
            f"(for example {', '.join(map(repr, examples))})"
            for what, (n, examples) in (("is null", null), ("repeats", repeated))
            if n
        ]
        super().__init__(
            f"Key {', '.join(map(repr, key))} of Delta table {uri!r} {' and '.join(problems)}; "
            "nothing was changed. "
            "Set RAG_TABLE__KEY to columns that identify each row, or to '[]' to identify rows by "
            "their content, or set RAG_TABLE__ON_BAD_KEY=pick to index one row of each key."
        )


class TableEmpty(TableError):
    """No row of the table has any text to index."""

    def __init__(self, uri: str, version: int, n_blank: int, n_left_out: int = 0) -> None:
        rows = "it has no rows."
        if n_blank:
            rows = f"{n_blank:,} rows are blank in the columns that RAG_TABLE__TEMPLATE names."
        elif n_left_out:
            rows = f"{n_left_out:,} rows have no key in the columns that RAG_TABLE__KEY names."
        super().__init__(f"Delta table {uri!r} at version {version} has nothing to index: {rows}")


class IndexingError(RagError):
    """The LanceDB index cannot be read or written as asked."""


class IndexNotBuilt(IndexingError):
    """No sync has completed at this index URI yet."""

    def __init__(self, index_uri: str, *, progress: str = "") -> None:
        remedy = progress or "Run `rag sync` to build it."
        super().__init__(f"There is no index at {index_uri!r} yet. {remedy}")


class IndexMismatch(IndexingError):
    """The index was built from something else than the settings name."""

    def __init__(self, what: str, *, built: object, wanted: object, mend: str) -> None:
        super().__init__(
            f"The index was built with {what} {built!r}, but the settings say {wanted!r}. {mend}"
        )


class OtherTable(IndexingError):
    """The index mirrors another table than the one that is there."""

    def __init__(self, index_uri: str, *, mirrored: str, found: str) -> None:
        if mirrored == found:
            text = (
                f"The table at {found!r} was made anew since the index at {index_uri!r} was built. "
            )
            remedy = "Run `rag sync --rebuild` to index the new one."
        else:
            text = f"The index at {index_uri!r} is of the table {mirrored!r}, not of {found!r}. "
            remedy = (
                "Set RAG_INDEX__URI to a place of its own, "
                "or run `rag sync --rebuild` to replace what is there."
            )
        super().__init__(text + remedy)


class VersionNotMirrored(IndexingError):
    """The index mirrors other versions of the table."""

    def __init__(self, index_uri: str, mirrored: Iterable[int], wanted: int) -> None:
        listed = ", ".join(map(str, sorted(mirrored)))
        super().__init__(
            f"The index at {index_uri!r} mirrors version {listed} of the table, not {wanted}. "
            f"Run `rag sync --version {wanted}` to mirror that one too."
        )


class IndexWriteError(IndexingError):
    """The index could not be written; the previous one still serves."""

    def __init__(self, index_uri: str, cause: str) -> None:
        super().__init__(
            f"The index at {index_uri!r} could not be written: {cause}. "
            "The previous index still serves; make room or fix the permission, "
            "then run `rag sync` again."
        )


class FilterError(RagError):
    """A metadata filter cannot be applied to this table."""


class WeightsError(RagError):
    """Model files cannot be used."""


class WeightsNotFound(WeightsError):
    """There is no such model, file or package."""


class ChecksumMismatch(WeightsError):
    """A model file is not the one it should be."""

    def __init__(self, path: str, *, expected: str, found: str, mend: str) -> None:
        super().__init__(
            f"Model file {path!r} is corrupt: its SHA-256 is {found}, expected {expected}. {mend}"
        )


class ModelError(RagError):
    """The language model refused or failed."""


class QuestionError(RagError):
    """The question is empty or too long."""


class AccountsError(RagError):
    """Chats and users cannot be read or kept as asked."""
