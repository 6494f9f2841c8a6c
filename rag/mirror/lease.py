"""Who syncs, on object storage: an object that its holder renews.

A waiter takes it over when nobody renewed it for a while, by the waiter's own clock alone, so that
no clock that is wrong can break a lease. Knows obstore; does not know what a sync does.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PreconditionError,
    UnknownConfigurationKeyError,
)
from obstore.store import from_url

from rag.errors import IndexWriteError, cause
from rag.mirror.holder import Holder, from_record, say, this_process
from rag.progress import Progress

RENEW_S = 10.0
"""Between two renewals."""
BREAK_S = 60.0
"""A lease that nobody renewed for so long is free."""
POLL_S = 2.0
"""Between two looks of a waiter."""

_OBJECT = ".sync.lock"
_FAILURES = (BaseError, OSError, ValueError)
"""What obstore raises: its own errors, and built-in ones where those fit."""
_LOST = (PreconditionError, FileNotFoundError)
"""A conditional put found another object than it expected, or none."""

# Source: `ClientConfigKey` of the Rust crate object_store, which deltalake and LanceDB share
_CLIENT = frozenset(
    "allow_http allow_invalid_certificates connect_timeout default_content_type http1_only "
    "http2_keep_alive_interval http2_keep_alive_timeout http2_keep_alive_while_idle "
    "http2_max_frame_size http2_only pool_idle_timeout pool_max_idle_per_host proxy_url "
    "proxy_ca_certificate proxy_excludes randomize_addresses read_timeout timeout "
    "user_agent".split()
)
_open: Any = from_url  # typed by the kind of storage, which only the URI tells
_RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}


class Lease:
    """An object that says who syncs, renewed while that is so.

    Args:
        uri: Of the index.
        store: The index's folder.
    """

    def __init__(self, uri: str, store: Any) -> None:
        self._uri, self._store = uri, store
        self._me = this_process()
        # with the count of renewals it makes each content, so each etag, another one
        self._token, self._n_renewed = uuid.uuid4().hex, 0
        self._mark: dict[str, str] = {}
        self._is_lost = False
        self._released = threading.Event()

    @classmethod
    def at(cls, uri: str, storage_options: Mapping[str, str] | None) -> Lease | None:
        """Return the lease of an index; None for a kind of storage that obstore lacks."""
        try:
            obstore.parse_scheme(uri)
        except _FAILURES:
            return None
        with _writing(uri):
            return cls(uri, _object_store(uri, storage_options or {}))

    @contextlib.contextmanager
    def held(self, progress: Progress) -> Iterator[Progress]:
        """Wait for it, then renew it until the `with` block ends."""
        with _writing(self._uri):
            self._take(progress)
        renewer = threading.Thread(target=self._keep, name="lease of the index", daemon=True)
        renewer.start()

        def told(what: str, n_done: int, n_total: int) -> None:
            if self._is_lost:
                raise IndexWriteError(
                    self._uri,
                    "another sync took its place, because its lease was removed "
                    f"or not renewed for {BREAK_S:.0f} seconds",
                )
            self._me = replace(self._me, what=what, n_done=n_done, n_total=n_total)
            progress(what, n_done, n_total)

        try:
            yield told
        finally:
            self._released.set()
            renewer.join()
            self._release()

    def holder(self) -> Holder | None:
        """Return who holds it.

        Whether a holder lives is judged by the storage's clock against ours: a wrong clock makes
        what is shown wrong, and nothing else.
        """
        with _writing(self._uri):
            found = self._look()
        if found is None:
            return None
        written, _, record = found
        is_dead = (datetime.now(UTC) - written).total_seconds() > BREAK_S
        return None if is_dead else from_record(record)

    def _take(self, progress: Progress) -> None:
        said = ""
        seen: dict[str, str] = {}
        seen_at = time.monotonic()
        while not self._create():
            found = self._look()
            if found is not None:
                _, mark, record = found
                if mark != seen:
                    seen, seen_at = mark, time.monotonic()
                elif time.monotonic() - seen_at >= BREAK_S and self._replace(mark):
                    return
                said = say(progress, from_record(record), said)
            time.sleep(POLL_S)

    def _create(self) -> bool:
        try:
            self._mark = _mark(obstore.put(self._store, _OBJECT, self._record(), mode="create"))
        except AlreadyExistsError:
            # perhaps by ourselves: a put is repeated when its answer is lost
            return self._is_ours()
        return True

    def _replace(self, mark: dict[str, str]) -> bool:
        """Write our record over the one that has this mark; False when that is gone."""
        mode: Any = mark
        try:
            self._mark = _mark(obstore.put(self._store, _OBJECT, self._record(), mode=mode))
        except _LOST:
            return self._is_ours()
        return True

    def _is_ours(self) -> bool:
        found = self._look()
        if found is None or found[2].get("token") != self._token:
            return False
        self._mark = found[1]
        return True

    def _look(self) -> tuple[datetime, dict[str, str], dict[str, Any]] | None:
        """Return when the record was written, its mark and itself; None where there is none."""
        try:
            found = obstore.get(self._store, _OBJECT)
            content = bytes(found.bytes())
        except FileNotFoundError as e:
            if "NoSuchBucket" in str(e):
                raise
            return None
        try:
            record = json.loads(content)
        except ValueError:
            record = {}
        meta: Any = found.meta
        return meta["last_modified"], _mark(meta), record if isinstance(record, dict) else {}

    def _record(self) -> bytes:
        self._n_renewed += 1
        count = {"token": self._token, "n_renewed": self._n_renewed}
        return json.dumps({**asdict(self._me), **count}).encode()

    def _keep(self) -> None:
        while not self._released.wait(RENEW_S):
            # a storage that cannot be reached for a moment has not given the lease away
            with contextlib.suppress(*_FAILURES):
                if not self._replace(self._mark):
                    self._is_lost = True
                    return

    def _release(self) -> None:
        # a delete has no condition; after a renewal nobody takes the lease for BREAK_S
        with contextlib.suppress(*_FAILURES):
            if not self._is_lost and self._replace(self._mark):
                obstore.delete(self._store, _OBJECT)


def _object_store(uri: str, storage_options: Mapping[str, str]) -> Any:
    """Open the folder of a URI with the options that deltalake and LanceDB take.

    These two pick what they know out of the options; obstore wants those of the HTTP client apart,
    and no others.
    """
    # obstore alone does not read AWS_ALLOW_HTTP; LanceDB refuses plain HTTP where it must
    client: dict[str, Any] = {"connect_timeout": "5s", "timeout": "15s", "allow_http": "true"}
    config: dict[str, Any] = {}
    for name, value in storage_options.items():
        bare = re.sub(r"^(aws|azure|google)_", "", name.lower())
        if bare in _CLIENT:
            client[bare] = value
        elif _is_known(uri, name, value):
            config[name.lower()] = value
    return _open(uri, config=config, client_options=client, retry_config=_RETRY)


def _is_known(uri: str, name: str, value: str) -> bool:
    try:
        _open(uri, config={name.lower(): value})
    except UnknownConfigurationKeyError:
        return False
    except _FAILURES:  # known, and not enough alone
        return True
    return True


def _mark(meta: Any) -> dict[str, str]:
    """Return what tells one content of an object from the next, as a condition for a put."""
    return {k: meta[k] for k in ("e_tag", "version") if meta.get(k)}


@contextlib.contextmanager
def _writing(uri: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as e:
        # after how long it took comes why; then the answer, which may repeat what was sent
        why = re.sub(r" in [\d.]+.?s\b.*? - ", ": ", cause(e)).partition(": <")[0]
        raise IndexWriteError(uri, why) from e
