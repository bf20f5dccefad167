"""AI Gateway's address for Workers AI: `/v1/{account}/{gateway}/workers-ai/...` leads to the account's own routes.

Clients that go through a gateway by default change host and path; pointed at this server they keep the path. The
gateway itself (its cache, retries and logs) is not played. Sits in front of access control, which must see the path
that is really routed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

_PATH = re.compile(r"/v1/(?!models/)(?P<account>[^/]+)/[^/]+/workers-ai/(?P<rest>.+)\Z")


@dataclass(frozen=True, slots=True)
class GatewayPath:
    """Plain ASGI. Other paths pass untouched."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Readdress and pass on."""
        if scope["type"] == "http":
            path: str = scope["path"]
            raw_path: str = (scope.get("raw_path") or path.encode()).decode("latin-1")
            if _PATH.match(path) and _PATH.match(raw_path):
                # In place: the layer outside renders errors by the path it finds here.
                scope["path"] = readdressed(path)
                scope["raw_path"] = readdressed(raw_path).encode("latin-1")
        await self.app(scope, receive, send)


def readdressed(path: str) -> str:
    """The account's route for a gateway path that ends in v1/... (OpenAI), run/<model> or the model alone."""
    found = _PATH.match(path)
    assert found is not None
    rest = found["rest"]
    is_route = rest.startswith(("v1/", "run/"))
    return f"/client/v4/accounts/{found['account']}/ai/{rest if is_route else 'run/' + rest}"
