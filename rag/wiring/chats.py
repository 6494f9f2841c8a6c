"""What is purged is purged from chats too.

Reads settings; knows the index and the accounts.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rag.settings import Settings, table_name

if TYPE_CHECKING:
    from rag.index import Index


def forget_purged(settings: Settings, index: Index) -> int:
    """Blank in chats the rows of the table that the index no longer holds.

    Returns:
        How many cards and answers were changed.

    Raises:
        AccountsError: chats cannot be read or written.
    """
    url = settings.web.database_url
    is_file = "://" not in url
    if is_file and not Path(url).exists():
        return 0
    # a thread of its own, because the caller may have a running loop in this one
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _forget(url, settings.table.uri, index)).result()


async def _forget(url: str, table_uri: str, index: Index) -> int:
    from rag.accounts import Accounts

    accounts = Accounts(url)
    try:
        shown = await accounts.rows_shown(table_name(table_uri))
        return await accounts.forget_rows(shown - await asyncio.to_thread(_held, index, shown))
    finally:
        await accounts.close()


def _held(index: Index, keys: set[str]) -> set[str]:
    answering = index.answering()
    if answering is None or not keys:
        return set()
    return set(index.hashes(answering.table, among=sorted(keys))["row_key"])
