"""Undoes Miniflare's remote-binding wrapping: a request for `/run` that arrives as a request for our base URL.

Every proxied request carries the original URL in `MF-URL`, the binding's name in `MF-Binding` and each original header
as `MF-Header-<name>`. Sits in front of access control, which must see the path that is really routed.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = b"mf-header-"
# Headers that say who is calling are the carrier's own; the wrapped ones were set by whoever wrote the Worker.
_CARRIER_HEADERS = (b"host", b"origin", b"content-length", b"transfer-encoding", b"upgrade", b"forwarded",
                    b"x-forwarded-for", b"x-real-ip", b"cf-connecting-ip", b"sec-fetch-site")  # fmt: skip
_PATHS = ("/run", "/ai-gateway/", "/ai-api/")


@dataclass(frozen=True, slots=True)
class RemoteProxy:
    """Plain ASGI. Requests without `MF-URL` pass untouched."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Unwrap and pass on."""
        if scope["type"] == "http":
            url = next((value for name, value in scope["headers"] if name == b"mf-url"), None)
            if url is not None:
                scope = _unwrapped(scope, url.decode("latin-1"))
        await self.app(scope, receive, send)


def _unwrapped(scope: Scope, url: str) -> Scope:
    """The scope of the original request, as far as the binding's own paths go; any other path leads nowhere."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    path = unquote(parts.path)
    if not path.startswith(_PATHS) or not parts.path.isascii() or not parts.query.isascii():
        path, parts = "/ai-api/unknown", urlsplit("/ai-api/unknown")
    carried = [(name, value) for name, value in scope["headers"] if name in _CARRIER_HEADERS]
    carried_names = {name for name, _ in carried}
    original = [
        (name.removeprefix(_PREFIX), value)
        for name, value in scope["headers"]
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in (*carried_names, *_CARRIER_HEADERS)
    ]
    return {
        **scope,
        "path": path,
        "raw_path": parts.path.encode("ascii"),
        "query_string": parts.query.encode("ascii"),
        "headers": [*carried, *original],
    }
