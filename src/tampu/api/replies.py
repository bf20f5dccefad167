"""Replies as ASGI sees them: JSON, event streams, and work that ends when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tampu.api.errors import ApiError

T = TypeVar("T")

DONE_FRAME = b"data: [DONE]\n\n"


def json_reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer. The content type is exactly `application/json`: the Worker binding compares it literally."""
    return Response(orjson.dumps(body), status, dict(headers or {}), media_type="application/json")


def data_frame(body: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


async def until_disconnect(receive: Receive) -> None:
    """Return when the client is gone. The request body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`; cancels it and raises ApiError 3008 when the client goes away first."""
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(until_disconnect(receive))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(3008)
        return task.result()
    finally:
        for each in (task, listener):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await each


class EventStream(Response):
    """Server-sent events from an async generator, which is closed as soon as the client is gone."""

    media_type = None  # Starlette would append a charset, and clients compare the type literally

    def __init__(self, frames: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(
            headers={"content-type": "text/event-stream", "cache-control": "no-cache", **dict(headers or {})}
        )
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generator ends or the client goes away. A cut is the business of the gate around the app."""
        try:
            await unless_disconnected(receive, self._send_all(send))
        except (ApiError, OSError):
            return  # nobody is left to tell
        finally:
            await self._frames.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_first(stream: AsyncGenerator[T, None], receive: Receive) -> AsyncGenerator[T, None]:
    """The same stream, its first item already fetched: what is wrong is raised here, before any header is sent."""
    try:
        first = await unless_disconnected(receive, anext(stream))
    except BaseException:
        await stream.aclose()
        raise
    return _chain(first, stream)


async def _chain(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    try:
        yield first
        async for item in rest:
            yield item
    finally:
        await rest.aclose()
