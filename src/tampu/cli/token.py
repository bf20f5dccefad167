"""`tampu token`: make, list and revoke API tokens. The lead command mounts `app`; nothing else is known here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from platformdirs import user_data_path
from rich.console import Console
from rich.table import Table

from tampu.cli.banner import print_table
from tampu.cli.options import DatabaseUrlOption, DataDirOption
from tampu.core.errors import ConfigError
from tampu.core.scopes import SCOPE_READ, SCOPES

if TYPE_CHECKING:
    from tampu.store.tokens import TokenRecord, TokenStore

app = typer.Typer(name="token", help="API tokens: make, list, revoke.", no_args_is_help=True)

_LONGEST_LIFE_S = 3650 * 86400
_UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command("create")
def create_command(
    account: Annotated[str, typer.Option(help="Account id of the URLs it may call; '*' for every account.")],
    scope: Annotated[list[str], typer.Option(help=f"One of {', '.join(SCOPES)}; may be given twice.")] = [SCOPE_READ],  # noqa: B006
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="Life time, at most ten years: 30m, 12h, 90d, 4w; default for ever.")
    ] = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Make a token and show it once, on standard output."""
    with _open_tokens(data_dir, database_url) as tokens:
        expires_at = None if expires is None else int(time.time()) + parse_life_time(expires)
        plaintext, record = tokens.create_token(account, scope, name, expires_at)
    notes = Console(stderr=True)
    notes.print(f"Token {record.token_id} for account {record.account!r}, scope {' '.join(sorted(record.scopes))}.")
    notes.print("Keep it now: it is stored as a hash and cannot be shown again.")
    typer.echo(plaintext)


@app.command("list")
def list_command(
    account: Annotated[str | None, typer.Option(help="Only this account's.")] = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Show what is known about each token; never the token itself."""
    with _open_tokens(data_dir, database_url) as tokens:
        records = tokens.list_tokens(account)
    table = Table("id", "account", "scopes", "name", "state", "last used")
    now = time.time()
    for record in records:
        scopes = " ".join(sorted(record.scopes))
        table.add_row(
            record.token_id, record.account, scopes, record.name, _state(record, now), _time(record.last_used_at)
        )
    print_table(table)


@app.command("revoke")
def revoke_command(
    token_id: Annotated[str, typer.Argument(help="The id that `tampu token list` shows.")],
    data_dir: DataDirOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """End a token. A running server notices within seconds."""
    with _open_tokens(data_dir, database_url) as tokens:
        if not tokens.revoke_token(token_id):
            raise ConfigError("token_id", f"there is no token {token_id!r}; see `tampu token list`")
    Console(stderr=True).print(f"Token {token_id} is revoked.")


@app.command("forget")
def forget_command(
    token_id: Annotated[str, typer.Argument(help="The id that `tampu token list` shows.")],
    data_dir: DataDirOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Remove a token and its record. Without any record left, a server on loopback accepts every caller again."""
    with _open_tokens(data_dir, database_url) as tokens:
        if not tokens.forget_token(token_id):
            raise ConfigError("token_id", f"there is no token {token_id!r}; see `tampu token list`")
    Console(stderr=True).print(f"Token {token_id} is gone.")


def parse_life_time(text: str) -> int:
    """Seconds of a life time such as 30m, 12h, 90d or 4w.

    Raises:
        ConfigError: when it is written otherwise, is zero or longer than ten years.
    """
    match = re.fullmatch(r"([0-9]{1,9})([mhdw])", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError("expires", f"{text!r} is not a life time; write for example 12h or 90d")
    seconds = int(match[1]) * _UNITS_S[match[2]]
    if seconds > _LONGEST_LIFE_S:
        raise ConfigError(
            "expires", f"{text!r} is longer than ten years (3650d); leave it out for a token that never expires"
        )
    return seconds


@contextmanager
def _open_tokens(data_dir: str | None, database_url: str | None) -> Iterator[TokenStore]:
    from tampu.store.database import open_database  # here, because `tampu serve --mock` needs no database library
    from tampu.store.tokens import TokenStore

    database = open_database(Path(data_dir) if data_dir else user_data_path("tampu"), database_url)
    try:
        yield TokenStore(database)
    finally:
        database.close()


def _state(record: TokenRecord, now: float) -> str:
    if record.revoked_at is not None:
        return "revoked"
    if not record.is_valid_at(now):
        return "expired"
    return "valid" if record.expires_at is None else f"until {_time(record.expires_at)}"


def _time(seconds: int | None) -> str:
    if seconds is None:
        return "never"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "a year beyond 9999"  # stored before life times had a limit; such a token can still be revoked
