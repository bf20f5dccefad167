"""A bound socket and a built application become a running server process; nothing here knows models or options."""

from __future__ import annotations

import errno
import gc
import math
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tampu.core.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from tampu.cli.banner import BannerFacts

_SECONDS_FOR_LAST_WORDS = 5  # between the end of the drain time and closed connections


@dataclass(frozen=True, slots=True)
class BuiltServer:
    """An application, what its banner says and how to end it."""

    app: FastAPI
    facts: BannerFacts
    close: Callable[[], None]
    drain: Callable[[float], object] = lambda seconds: None  # accept nothing more; after so long, end what is open


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything slow happens. Raises ConfigError naming the host or the port."""
    with ExitStack() as cleanup:
        try:
            listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            cleanup.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(2048)  # SO_REUSEADDR lets two servers bind; only one may listen
        except (OSError, TypeError, ValueError) as error:  # the latter for names that cannot be encoded
            raise _bind_error(host, port, error) from None
        cleanup.pop_all()
    return listener


def _bind_error(host: str, port: int, error: Exception) -> ConfigError:
    if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
        return ConfigError(
            "port",
            f"cannot listen on {join_address(host, port)} ({error.strerror}): "
            "choose another with --port (with make: PORT=…)",
        )
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        "host",
        f"{host!r} is no address of this machine ({reason}): write a name or an address it has, such as "
        "127.0.0.1, or ::1 without brackets",
    )


def join_address(host: str, port: int) -> str:
    """host:port as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def http_config(app: ASGIApp, **settings: Any) -> uvicorn.Config:
    """How an app is served, with `settings` of one server."""
    import uvicorn

    from tampu.cli.http_protocol import ClosableHttpProtocol

    return uvicorn.Config(
        app, access_log=False, lifespan="on", http=ClosableHttpProtocol, ws="none", server_header=False, **settings
    )


def run_server(server: BuiltServer, listener: socket.socket, drain_seconds: float) -> None:
    """Serve until SIGINT or SIGTERM. Open requests may finish within the drain time; then they end with an error, which
    streams send as a frame. A second signal ends everything at once."""
    import uvicorn

    config = http_config(
        server.app,
        log_level="warning",
        loop="uvloop",
        timeout_graceful_shutdown=math.ceil(drain_seconds + _SECONDS_FOR_LAST_WORDS),
    )
    # Start-up garbage is permanent: keep the collector from walking it while answers stream.
    gc.collect()
    gc.freeze()
    gc.enable()

    class DrainingServer(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # A thread that nobody waits for: after a second signal the process ends without it.
            threading.Thread(target=server.drain, args=(drain_seconds,), name="tampu-drain", daemon=True).start()
            await super().shutdown(sockets)

    try:
        DrainingServer(config).run(sockets=[listener])
    finally:
        server.close()
