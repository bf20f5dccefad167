"""API tokens: made, listed, revoked and looked up. Knows no HTTP and no header.

A token is `tampu_<id>_<secret>`. The id may be shown and finds the row; the secret is 32 random bytes and is never
stored: the row holds the SHA-256 of the whole token. A plain hash is enough because nobody can guess 256 bits.

Everything here blocks; `token_cache` is the face for event loops.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update

from tampu.core.errors import ConfigError
from tampu.core.scopes import SCOPE_READ, SCOPE_WRITE, SCOPES
from tampu.store.database import Database
from tampu.store.tables import API_TOKENS

ANY_ACCOUNT = "*"

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_TOKEN = re.compile(r"tampu_([0-9a-f]{12})_[A-Za-z0-9_-]{43}\Z")
_LAST_USED_STEP_S = 60  # how exact `last_used_at` is; a write for every request would be the busiest of all


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known about a token; times are seconds since 1970 (UTC), None = never."""

    token_id: str
    account: str
    scopes: frozenset[str]
    name: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None

    def is_valid_at(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def allows_account(self, account: str) -> bool:
        """Made for this account or for every one."""
        return self.account in (ANY_ACCOUNT, account)

    def allows_scope(self, scope: str) -> bool:
        """Writing includes reading."""
        return scope in self.scopes or (scope == SCOPE_READ and SCOPE_WRITE in self.scopes)


class TokenStore:
    """The tokens of one database. `clock` gives seconds since 1970."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create_token(
        self, account: str, scopes: Collection[str], name: str = "", expires_at: int | None = None
    ) -> tuple[str, TokenRecord]:
        """Make a token; the first of the pair is its plaintext, which is never available again.

        Raises:
            ConfigError: naming the field that is wrong.
        """
        now = int(self._clock())
        _check_token_fields(account, scopes, name)
        if expires_at is not None and expires_at <= now:
            raise ConfigError("expires", "lies in the past")
        token_id = secrets.token_hex(6)
        plaintext = f"tampu_{token_id}_{secrets.token_urlsafe(32)}"
        record = TokenRecord(token_id, account, frozenset(scopes), name, created_at=now, expires_at=expires_at)
        with self._database.write() as connection:
            connection.execute(
                API_TOKENS.insert().values(
                    token_id=token_id,
                    secret_sha256=_digest(plaintext),
                    account=account,
                    scopes=" ".join(sorted(record.scopes)),
                    name=name,
                    created_at=now,
                    expires_at=expires_at,
                )
            )
        return plaintext, record

    def list_tokens(self, account: str | None = None) -> list[TokenRecord]:
        """All tokens, revoked and expired ones too, oldest first; of one account, if given."""
        query = select(API_TOKENS).order_by(API_TOKENS.c.created_at, API_TOKENS.c.token_id)
        if account is not None:
            query = query.where(API_TOKENS.c.account == account)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def has_tokens(self) -> bool:
        """Whether a token was ever made and not forgotten: an expired one must not open the server again."""
        with self._database.read() as connection:
            return bool(connection.execute(select(func.count()).select_from(API_TOKENS)).scalar())

    def revoke_token(self, token_id: str) -> bool:
        """End a token for good; False when there is no such token. Revoking twice keeps the first time."""
        with self._database.write() as connection:
            known = connection.execute(select(API_TOKENS.c.token_id).where(API_TOKENS.c.token_id == token_id)).first()
            connection.execute(
                update(API_TOKENS)
                .where(API_TOKENS.c.token_id == token_id, API_TOKENS.c.revoked_at.is_(None))
                .values(revoked_at=int(self._clock()))
            )
        return known is not None

    def forget_token(self, token_id: str) -> bool:
        """Remove a token's row; False when there is no such token."""
        with self._database.write() as connection:
            found = connection.execute(
                delete(API_TOKENS).where(API_TOKENS.c.token_id == token_id).returning(API_TOKENS.c.token_id)
            )
            return found.first() is not None

    def find_token(self, plaintext: str) -> TokenRecord | None:
        """The valid token with this plaintext, or None. Notes the time of use, to the minute."""
        match = _TOKEN.match(plaintext)
        if match is None:
            return None
        with self._database.read() as connection:
            row = (
                connection.execute(select(API_TOKENS).where(API_TOKENS.c.token_id == match[1])).mappings().one_or_none()
            )
        stored = "" if row is None else row["secret_sha256"]
        if not hmac.compare_digest(stored, _digest(plaintext)) or row is None:
            return None
        record = _record(row)
        now = int(self._clock())
        if not record.is_valid_at(now):
            return None
        if record.last_used_at is None or now - record.last_used_at >= _LAST_USED_STEP_S:
            with self._database.write() as connection:
                connection.execute(
                    update(API_TOKENS).where(API_TOKENS.c.token_id == record.token_id).values(last_used_at=now)
                )
        return record


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()


def _record(row: Mapping[Any, Any]) -> TokenRecord:
    fields = {key: row[key] for key in row if key not in ("secret_sha256", "scopes")}
    return TokenRecord(scopes=frozenset(row["scopes"].split()), **fields)


def _check_token_fields(account: str, scopes: Collection[str], name: str) -> None:
    if account != ANY_ACCOUNT and _ACCOUNT.match(account) is None:
        raise ConfigError("account", f"{account!r} is not an account id (letters, digits, - _ . up to 64) or '*'")
    if not scopes:
        raise ConfigError("scope", f"give at least one of {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in SCOPES:
            raise ConfigError("scope", f"{scope!r} is not one of {', '.join(SCOPES)}")
    if len(name) > 100 or not name.isprintable():
        raise ConfigError("name", "must be at most 100 printable characters")
