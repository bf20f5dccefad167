"""uvicorn's HTTP protocol with one extension more: a request may close its connection (see `tampu.api.connection`)."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tampu.api.connection import CLOSE


class ClosableHttpProtocol(HttpToolsProtocol):
    """What was sent before is still delivered; then the connection ends."""

    def on_headers_complete(self) -> None:
        """Begin a request, with a way to end it that its own `receive` hears of: another may be behind it already."""
        super().on_headers_complete()
        cycle, transport = self.cycle, self.transport
        if cycle is None or cycle.scope is not self.scope:
            return

        def close() -> None:
            cycle.disconnected = True
            cycle.message_event.set()
            transport.close()

        self.scope["extensions"] = {CLOSE: {"close": close}}
