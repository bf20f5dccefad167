"""Breaking off: the connection ends, an answer half sent or not begun. ASGI has no words for it, so we add one.

A server that offers the extension CLOSE in a request's scope gives a function that closes the connection of that
request; without it, an answer is left incomplete and the server does with it what it likes.
"""

from __future__ import annotations

from starlette.types import Receive, Scope

CLOSE = "tampu.close"


async def break_off(scope: Scope, receive: Receive) -> None:
    """Close the connection of a request and wait until it is closed: returning earlier is an error to the server."""
    extension = scope.get("extensions", {}).get(CLOSE)
    if extension is None:
        return
    extension["close"]()
    while (await receive())["type"] != "http.disconnect":
        pass
