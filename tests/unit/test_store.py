"""The database and the API tokens in it: what survives, what is refused, what is never stored."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from tampu.core.errors import ConfigError
from tampu.store.database import DATABASE_FILE, open_database
from tampu.store.tables import SCHEMA_STEPS
from tampu.store.token_cache import TokenCache
from tampu.store.tokens import TokenStore


class Clock:
    """A clock that moves when told."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_token_is_found_by_its_plaintext_only_and_survives_a_restart(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    plaintext, record = TokenStore(database).create_token("acme", ["ai:read"], "ci")
    database.close()

    database = open_database(tmp_path)
    store = TokenStore(database)
    found = store.find_token(plaintext)
    assert found is not None
    assert (found.token_id, found.account, found.scopes, found.name) == (record.token_id, "acme", {"ai:read"}, "ci")
    other_end = "A" if plaintext[-2] != "A" else "B"
    for wrong in ("", "tampu_", plaintext[:-1], plaintext[:-2] + other_end + plaintext[-1], plaintext + "\n", "x" * 99):
        assert store.find_token(wrong) is None
    database.close()


def test_the_plaintext_is_nowhere_on_disk_and_nobody_else_can_read_the_file(tmp_path: Path) -> None:
    database = open_database(tmp_path / "data")
    plaintext, _ = TokenStore(database).create_token("acme", ["ai:write"])
    database.close()
    secret = plaintext.rsplit("_", 1)[-1].encode()
    for file in (tmp_path / "data").iterdir():
        assert secret not in file.read_bytes()
    assert stat.S_IMODE((tmp_path / "data" / DATABASE_FILE).stat().st_mode) == 0o600


def test_expiry_and_revocation_end_a_token_but_keep_its_record(tmp_path: Path) -> None:
    clock = Clock()
    database = open_database(tmp_path)
    store = TokenStore(database, clock)
    short, _ = store.create_token("acme", ["ai:read"], expires_at=int(clock.now) + 60)
    long, record = store.create_token("acme", ["ai:read"])
    assert store.find_token(short) is not None
    clock.now += 60
    assert store.find_token(short) is None
    assert store.find_token(long) is not None
    assert store.revoke_token(record.token_id)
    assert not store.revoke_token("000000000000")
    assert store.find_token(long) is None
    revoked_at = store.list_tokens()[1].revoked_at
    clock.now += 5
    store.revoke_token(record.token_id)
    assert store.list_tokens()[1].revoked_at == revoked_at
    assert store.has_tokens(), "a server must not open again because its tokens ended"
    assert store.forget_token(record.token_id)
    assert not store.forget_token(record.token_id)
    assert len(store.list_tokens("acme")) == 1
    assert store.list_tokens("other") == []
    database.close()


def test_last_used_is_noted_to_the_minute(tmp_path: Path) -> None:
    clock = Clock()
    database = open_database(tmp_path)
    store = TokenStore(database, clock)
    plaintext, _ = store.create_token("acme", ["ai:read"])
    assert store.list_tokens()[0].last_used_at is None
    store.find_token(plaintext)
    clock.now += 59
    store.find_token(plaintext)
    assert store.list_tokens()[0].last_used_at == 1_000_000
    clock.now += 1
    store.find_token(plaintext)
    assert store.list_tokens()[0].last_used_at == 1_000_060
    database.close()


@pytest.mark.parametrize(
    ("account", "scopes", "name", "field"),
    [
        ("", ["ai:read"], "", "account"),
        ("a/b", ["ai:read"], "", "account"),
        ("a" * 65, ["ai:read"], "", "account"),
        ("acme", [], "", "scope"),
        ("acme", ["ai:all"], "", "scope"),
        ("acme", ["ai:read"], "a\nb", "name"),
        ("acme", ["ai:read"], "a" * 101, "name"),
    ],
)
def test_wrong_fields_are_refused_by_name(
    tmp_path: Path, account: str, scopes: list[str], name: str, field: str
) -> None:
    database = open_database(tmp_path)
    with pytest.raises(ConfigError) as caught:
        TokenStore(database).create_token(account, scopes, name)
    assert caught.value.setting == field
    with pytest.raises(ConfigError, match="past"):
        TokenStore(database).create_token("acme", ["ai:read"], expires_at=1)
    database.close()


def test_writing_includes_reading_and_accounts_are_kept_apart(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    store = TokenStore(database)
    _, reader = store.create_token("acme", ["ai:read"])
    _, writer = store.create_token("*", ["ai:write"])
    assert reader.allows_scope("ai:read")
    assert not reader.allows_scope("ai:write")
    assert writer.allows_scope("ai:read")
    assert writer.allows_scope("ai:write")
    assert reader.allows_account("acme")
    assert not reader.allows_account("acme2")
    assert writer.allows_account("anything")
    database.close()


def test_many_openers_of_a_new_database_build_the_schema_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)

    def open_and_write(number: int) -> None:
        barrier.wait()
        database = open_database(tmp_path)
        TokenStore(database).create_token(f"account-{number}", ["ai:read"])
        database.close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(open_and_write, range(6)))
    database = open_database(tmp_path)
    assert len(TokenStore(database).list_tokens()) == 6
    with database.read() as connection:
        assert list(connection.execute(text("SELECT version FROM schema_version"))) == [(len(SCHEMA_STEPS),)]
    database.close()


def test_an_old_database_is_upgraded_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE_FILE)
    connection.executescript(
        "CREATE TABLE schema_version (version INTEGER PRIMARY KEY); INSERT INTO schema_version VALUES (0)"
    )
    connection.close()
    database = open_database(tmp_path)
    assert TokenStore(database).list_tokens() == []
    with database.write() as writing:
        writing.execute(text("UPDATE schema_version SET version = 999"))
    database.close()
    with pytest.raises(ConfigError, match=r"999.*newer Tampu"):
        open_database(tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://user:hunter2@host/db", "not supported"),
        ("sqlite:////nowhere/at/all/file", "cannot open"),
    ],
)
def test_a_bad_database_url_is_one_clear_sentence(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_database(tmp_path, url)
    assert caught.value.setting == "database_url"
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="cannot open"):
        open_database(tmp_path)


async def test_the_cache_asks_off_the_loop_and_forgets_in_time(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    store = TokenStore(database)
    clock = Clock(0.0)
    cache = TokenCache(store, ttl_s=5, clock=clock)
    assert await cache.has_tokens() is False
    plaintext, record = store.create_token("acme", ["ai:read"])
    assert await cache.has_tokens() is False
    clock.now = 5.0
    assert await cache.has_tokens() is True
    found = await asyncio.gather(*(cache.find_token(plaintext) for _ in range(20)))
    assert all(token is not None and token.token_id == record.token_id for token in found)
    assert await cache.find_token("\ud800") is None
    store.revoke_token(record.token_id)
    assert await cache.find_token(plaintext) is not None
    clock.now = 10.0
    assert await cache.find_token(plaintext) is None
    cache.close()
    database.close()
