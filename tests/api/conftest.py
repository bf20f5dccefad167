"""Fixtures of the API tests: a server without weights or sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from scripted_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server without a socket."""
    made = Server()
    yield made
    made.close()
    assert made.generator.num_open_requests == 0


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client in default mode."""
    async with server.client() as made:
        yield made


@pytest.fixture
async def strict(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client in strict mode."""
    async with server.client(is_strict=True) as made:
        made.headers["authorization"] = "Bearer token"
        yield made
