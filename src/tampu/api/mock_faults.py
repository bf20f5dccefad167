"""Lets a request to the mock ask for its own fault: `x-tampu-mock: error=3040`, `status=503`, `cut_after=3`, ..."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from tampu.serving.mock_script import DIRECTIVE, HEADER

_HEADER = HEADER.encode()


@dataclass(frozen=True, slots=True)
class MockFaults:
    """Plain ASGI: hands the header to the mock, which reads it where the route renders errors."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request under its own directive."""
        directive = b" ".join(value for name, value in scope.get("headers", ()) if name == _HEADER)
        token = DIRECTIVE.set(directive.decode("latin-1"))
        try:
            await self.app(scope, receive, send)
        finally:
            DIRECTIVE.reset(token)
