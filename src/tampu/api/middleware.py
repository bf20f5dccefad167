"""The outermost ASGI layer: request ids, header limits, and the last net for unexpected exceptions."""

from __future__ import annotations

import logging
import re
import secrets
import uuid
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tampu.api.config import ServerConfig
from tampu.api.connection import break_off
from tampu.api.errors import ApiError
from tampu.serving.faults import StreamCut

_LOG = logging.getLogger("tampu.api")
# host or [v6 address], then a port; anything else could make some later reader see another path
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")


class RequestGate:
    """Numbers every request and turns away those whose headers are too many, too large or malformed."""

    def __init__(
        self, app: ASGIApp, *, config: ServerConfig, render_error: Callable[[Scope, BaseException], Response]
    ) -> None:
        self._app = app
        self._config = config
        self._render_error = render_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["tampu.request_id"] = str(uuid.uuid4())
        ray = secrets.token_hex(8)
        is_started = False

        async def send_numbered(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                MutableHeaders(scope=message)["cf-ray"] = f"{ray}-TPU"
            await send(message)

        try:
            self._check_headers(scope)
            await self._app(scope, receive, send_numbered)
        except StreamCut:
            await break_off(scope, receive)
        except Exception as error:
            if not isinstance(error, ApiError):
                _LOG.exception("request %s failed", scope["tampu.request_id"])
            if is_started:
                raise
            await self._render_error(scope, error)(scope, receive, send_numbered)

    def _check_headers(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > self._config.max_num_headers:
            raise ApiError(6003, hint=f"Send at most {self._config.max_num_headers} headers.")
        if sum(len(name) + len(value) for name, value in headers) > self._config.max_header_bytes:
            raise ApiError(6003, hint=f"Send at most {self._config.max_header_bytes} bytes of headers.")
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) > 1 or (hosts and not _HOST.match(hosts[0])):
            raise ApiError(6003, hint="The Host header is malformed.")
