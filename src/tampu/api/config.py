"""Settings of the HTTP layer, stated once. The command line builds it; nothing here reads the environment."""

from __future__ import annotations

from dataclasses import dataclass

from tampu.core.errors import ConfigError

_LOOPBACK_HOSTS = ("localhost", "::1")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the server listens, what it refuses and which optional features are on."""

    host: str = "127.0.0.1"
    port: int = 8900
    is_strict: bool = False  # refuse what the hosted service refuses, word for word
    max_body_bytes: int = 16 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    max_num_headers: int = 100
    default_max_tokens: int = 256  # of a native request that names none
    is_stream_padded: bool = False  # `p` in native stream frames, against token-length side channels
    has_null_response_with_tool_calls: bool = False  # `response: null` beside tool calls, as seen live; default ""
    is_image_ignored: bool = False  # drop `image` with a note instead of refusing it
    enables_functions: bool | None = None  # None = only where nobody else can reach the server
    request_timeout_s: float | None = None  # None = no limit

    def __post_init__(self) -> None:
        for setting in (
            "max_body_bytes",
            "max_header_bytes",
            "max_num_headers",
            "default_max_tokens",
        ):
            if getattr(self, setting) < 1:
                raise ConfigError(setting, "must be at least 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", f"{self.port} is not a port number (0 to 65535)")
        if self.request_timeout_s is not None and self.request_timeout_s <= 0:
            raise ConfigError("request_timeout_s", "must be above 0")

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the server."""
        return self.host in _LOOPBACK_HOSTS or self.host.startswith("127.")

    @property
    def runs_functions(self) -> bool:
        """Whether the JavaScript of `functions` may run here."""
        return self.is_loopback if self.enables_functions is None else self.enables_functions
