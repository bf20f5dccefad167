"""An app behind real uvicorn on a free port of this machine, for tests that need a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tampu.cli.server_process import http_config


@contextmanager
def live(app: ASGIApp) -> Iterator[str]:
    """The base URL of the running app; stopped on leaving."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(http_config(app, log_level="critical", loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()
