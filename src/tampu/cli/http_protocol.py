"""uvicorn's HTTP protocol with one extension more: a request may close its connection (see `tampu.api.connection`)."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tampu.api.connection import CLOSE


class ClosableHttpProtocol(HttpToolsProtocol):
    """What was sent before is still delivered; then the connection ends."""

    def on_message_begin(self) -> None:
        """Start a request's scope."""
        super().on_message_begin()
        self.scope["extensions"] = {CLOSE: {"close": self.transport.close}}
