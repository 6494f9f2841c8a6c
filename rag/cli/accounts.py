"""`rag user` and `rag feedback`: who may log in, and what was asked and rated."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from rag.accounts import Accounts
from rag.cli.terminal import Json, err, out, plain, print_json
from rag.errors import AccountsError
from rag.settings import Settings
from rag.wiring.parts import table_options

T = TypeVar("T")

user_app = typer.Typer(help="Who may log in to the web chat with a password.", no_args_is_help=True)
feedback_app = typer.Typer(help="What was asked in the web chat, and rated.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name to log in with.")]


@user_app.command()
def add(
    name: Name,
    admin: Annotated[
        bool, typer.Option("--admin", help="May sync, switch the model and see `/stats`.")
    ] = False,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read the password from a pipe instead of asking.")
    ] = False,
) -> None:
    """Add a user, or give one a new password; asks for it twice, without showing it."""
    password = _piped() if stdin else _asked()
    _run(lambda accounts: accounts.add_user(name, password, admin))
    kind = "an admin" if admin else "a user"
    out.print(f"{plain(name)} can log in, as {kind}.")


@user_app.command("list")
def list_(as_json: Json = False) -> None:
    """List who can log in."""
    found = _run(lambda accounts: accounts.users())
    if as_json:
        print_json([{"name": user.name, "is_admin": user.is_admin} for user in found])
        return
    for user in found:
        out.print(f"{plain(user.name)}{'  (admin)' if user.is_admin else ''}")
    if not found:
        err.print("There are no users yet. Add one with `rag user add NAME`.")


@user_app.command()
def remove(name: Name) -> None:
    """Remove a user, with all chats and ratings of theirs."""
    n_chats = _run(lambda accounts: accounts.remove_user(name))
    out.print(f"Removed {plain(name)} and {n_chats:,} {'chat' if n_chats == 1 else 'chats'}.")


@feedback_app.callback()
def feedback() -> None:
    """Keep `export` a command of its own: one alone would be the group."""


@feedback_app.command()
def export(
    uri: Annotated[str, typer.Argument(help="Folder or URL of the Delta table to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace its rows; else rows are added or renewed.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="All answers, to read; not for `rag eval`.")
    ] = False,
    with_users: Annotated[bool, typer.Option("--with-users", help="Also who asked.")] = False,
    as_json: Json = False,
) -> None:
    """Write questions that were answered well as a Delta table, ready for `rag eval`."""
    # polars and deltalake take a second that `rag user` need not wait for
    from rag.accounts.export import Wanted, collect, write

    settings = Settings()
    wanted = Wanted(is_all=every, with_users=with_users, overwrite=overwrite)
    frame = _run(lambda accounts: collect(accounts, wanted), settings)
    done = write(uri, frame, wanted, storage_options=table_options(settings))
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    rows = "1 row" if done.n_rows == 1 else f"{done.n_rows:,} rows"
    out.print(f"Wrote {rows} to {plain(done.uri)}, version {done.version}.")


def _run(use: Callable[[Accounts], Awaitable[T]], settings: Settings | None = None) -> T:
    """Run something on the accounts of the settings, and close them."""
    accounts = Accounts((settings or Settings()).web.database_url)

    async def used() -> T:
        try:
            return await use(accounts)
        finally:
            await accounts.close()

    return asyncio.run(used())


def _asked() -> str:
    if not sys.stdin.isatty():
        raise AccountsError(
            "There is no terminal to ask for the password. Pipe it in and add --stdin."
        )
    password: str = typer.prompt("Password", hide_input=True)
    if typer.prompt("Again", hide_input=True) != password:
        raise AccountsError("The two passwords differ; nothing was changed. Try again.")
    return password


def _piped() -> str:
    # one line: what `echo` ends with is no part of the password
    return sys.stdin.readline().rstrip("\r\n")
