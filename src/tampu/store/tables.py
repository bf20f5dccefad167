"""The tables and the steps that build them. Knows no connection and no rule about what a row means.

A released step never changes: a new table or column is a new step at the end, and the version of a database is the
number of steps it has seen. Times are whole seconds since 1970 in UTC, the same on every database.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import BigInteger, Column, Connection, Index, Integer, MetaData, String, Table

METADATA = MetaData()

SCHEMA_VERSION = Table("schema_version", METADATA, Column("version", Integer, primary_key=True))

API_TOKENS = Table(
    "api_tokens",
    METADATA,
    Column("token_id", String(16), primary_key=True),  # the part of a token that may be shown
    Column("secret_sha256", String(64), nullable=False),  # of the whole token, lower-case hexadecimal
    Column("account", String(64), nullable=False),  # "*" = every account
    Column("scopes", String(255), nullable=False),  # sorted, separated by one space
    Column("name", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=True),
    Column("revoked_at", BigInteger, nullable=True),
    Column("last_used_at", BigInteger, nullable=True),
    Index("api_tokens_account", "account"),
)


def _create_api_tokens(connection: Connection) -> None:
    METADATA.create_all(connection, tables=[API_TOKENS])


SCHEMA_STEPS: tuple[Callable[[Connection], None], ...] = (_create_api_tokens,)
