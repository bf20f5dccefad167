"""Opens the database, builds or upgrades its schema, and hands out short transactions. Knows no table's meaning.

Everything here blocks: call it from a thread, never from an event loop.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tampu.core.errors import ConfigError
from tampu.store.tables import SCHEMA_STEPS, SCHEMA_VERSION

DATABASE_FILE = "tampu.sqlite3"
_BUSY_TIMEOUT_MS = 10_000
_UPGRADE_LOCK = 0x74616D7075  # any fixed number: names the PostgreSQL advisory lock of an upgrade
_WRITES = "tampu_writes"


class Database:
    """Short transactions on one database: committed at the end, rolled back on an error. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing_engine = engine.execution_options(**{_WRITES: True})

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only looks."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that takes the write lock at once, so that two writers queue instead of failing half-way."""
        with self._writing_engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()


def open_database(data_dir: Path, url: str | None = None) -> Database:
    """The database at `url`, or the SQLite file in `data_dir`; its schema is built or upgraded when needed.

    Raises:
        ConfigError: for a URL that is malformed, of an unsupported kind or not reachable, for a folder that cannot be
            written, and for a database that a newer Tampu has upgraded.
    """
    where = _sqlite_url(data_dir) if url is None else _parse_url(url)
    setting = "data_dir" if url is None else "database_url"
    shown = where.render_as_string(hide_password=True)
    try:
        engine = _create_engine(where)
    except ModuleNotFoundError as error:
        raise ConfigError(
            setting, f"{shown} needs the Python package {error.name!r}: install tampu[postgres]"
        ) from None
    database = Database(engine)
    try:
        _upgrade(database, shown)
    except SQLAlchemyError as error:
        database.close()
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise ConfigError(setting, f"cannot open {shown}: {_first_line(cause)}") from None
    except ConfigError:
        database.close()
        raise
    return database


def _sqlite_url(data_dir: Path) -> URL:
    path = data_dir / DATABASE_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created here so that nobody else can read it, whatever the umask says.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError("data_dir", f"cannot write {path}: {error.strerror}") from None
    return URL.create("sqlite", database=str(path))


def _parse_url(url: str) -> URL:
    kinds = "postgresql://user:password@host/database or sqlite:////folder/file"
    try:
        parsed = make_url(url)
        name = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigError("database_url", f"is not a database URL; write {kinds}") from None
    if name in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if name == "sqlite":
        return parsed.set(drivername="sqlite")
    raise ConfigError("database_url", f"{name!r} databases are not supported; write {kinds}")


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=4, max_overflow=4)
    # One connection per transaction costs microseconds on SQLite and keeps no handle across threads or forks.
    engine = create_engine(url, poolclass=NullPool)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own: `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Write-ahead logging, a property of the file. The switch itself ignores the busy time-out, so it waits here."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # another process is switching or writing
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    is_write = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _upgrade(database: Database, shown: str) -> None:
    """Run the schema steps that this database has not seen; two processes may try at once."""
    newest = len(SCHEMA_STEPS)
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        SCHEMA_VERSION.create(connection, checkfirst=True)
        found = connection.execute(select(SCHEMA_VERSION.c.version)).scalar()
        version = 0 if found is None else int(found)
        if version > newest:
            raise ConfigError(
                "database",
                f"{shown} has schema version {version}, and this Tampu knows up to {newest}: use the newer Tampu",
            )
        for step in SCHEMA_STEPS[version:]:
            step(connection)
        if found is None:
            connection.execute(SCHEMA_VERSION.insert().values(version=newest))
        elif version < newest:
            connection.execute(SCHEMA_VERSION.update().values(version=newest))


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
