"""Who may call what. Decides on the path that routing sees, denies by default, and knows no route's work.

Three ways in:

* open: no token was ever made and the server listens on loopback only. Any credentials and any account are accepted.
* token: `Authorization: Bearer`, or the two older header forms of the hosted service, with the account and scope of
  the route.
* by connection: the Worker binding sends no credentials, so its routes are open to peers on this machine.

Whoever comes in without a token must not be a foreign web page: see `check_not_foreign_page`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from tampu.api.errors import ApiError
from tampu.core.errors import ConfigError

DEFAULT_PUBLIC_PATHS = frozenset({"/health", "/ready", "/docs"})
BINDING_HOST = "workers-binding.ai"
PRINCIPAL = "principal"  # key in the ASGI scope's state

# A web page of this machine, in words that `_is_local_name` agrees with: its scripts may call and read.
LOCAL_ORIGIN = r"https?://(localhost|[a-z0-9.-]+\.localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?"

_ACCOUNT_PATH = re.compile(r"/client/v4/accounts/([^/]+)(/.*)?\Z")
_BEARER = re.compile(r"bearer +([A-Za-z0-9\-._~+/]+=*) *\Z", re.IGNORECASE)
_BINDING_PREFIXES = ("/ai-gateway/", "/ai-api/")
_WRITE_PATH = re.compile(r"/client/v4/accounts/[^/]+/ai/finetunes(/|\Z)")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#*@\s]+", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9._-]{1,255}", re.IGNORECASE)
_OWN_PORTS = {"http": 80, "https": 443}
_FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "cf-connecting-ip")
_SEND_BEARER = "Send `Authorization: Bearer <token>`."
_LOCAL_SUFFIXES = (".localhost", ".docker.internal", ".containers.internal")  # nobody can register these


class GrantedToken(Protocol):
    """What a token look-up returns."""

    @property
    def token_id(self) -> str:
        """The part that may be logged."""

    def allows_account(self, account: str) -> bool:
        """Made for this account or for every one."""

    def allows_scope(self, scope: str) -> bool:
        """`scope` is ai:read or ai:write."""

    @property
    def account(self) -> str:
        """The account it was made for; "*" = every one."""


class TokenLookup(Protocol):
    """The token store as an event loop sees it (`tampu.store.token_cache.TokenCache`)."""

    async def find_token(self, plaintext: str) -> GrantedToken | None:
        """The valid token with this plaintext, or None."""

    async def has_tokens(self) -> bool:
        """Whether any token was ever made."""


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Settings of access control. `allowed_hosts` are further names that this server is reached under."""

    bind_host: str = "127.0.0.1"
    is_strict: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()  # web pages that may call: scheme://host[:port]
    public_paths: frozenset[str] = DEFAULT_PUBLIC_PATHS

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            if not _is_host_name(host):
                raise ConfigError(
                    "allowed_hosts",
                    f"{host!r} is not a host name: write the name alone, without scheme, port, path or '*', "
                    "as in ai.example.org",
                )
        for origin in self.allowed_origins:
            if _ORIGIN.fullmatch(origin) is None:
                raise ConfigError(
                    "allowed_origins", f"{origin!r} is not scheme://host[:port], without a path; '*' is not allowed"
                )
            sent = _as_browsers_send(origin)
            if sent != origin:
                advice = f"write {sent!r}" if sent else "its port is none"
                raise ConfigError("allowed_origins", f"{origin!r} is not how browsers send it: {advice}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who was let in. `tenant` keeps the prefix caches of token holders apart; "" = no token was needed."""

    account: str
    token_id: str | None = None

    @property
    def tenant(self) -> str:
        """Namespace of the prefix cache: one per account, one for everybody who came without a token."""
        return self.account if self.token_id is not None else ""


@dataclass(frozen=True, slots=True)
class AccessControl:
    """Lets requests in or raises ApiError."""

    policy: AccessPolicy
    tokens: TokenLookup | None = None

    async def authorize(self, scope: Scope) -> Principal:
        """Decide on one HTTP or WebSocket request.

        Raises:
            ApiError: 9106, 6003 or 10000.
        """
        path: str = scope["path"]
        if path in self.policy.public_paths:
            return Principal(account="")
        headers = _headers(scope)
        account = account_of_path(path)
        if await self._is_open():
            if self.policy.is_strict and account is not None:
                read_credentials(headers, is_hosted_path=True)
            check_not_foreign_page(scope.get("method", "GET"), path, headers, self.policy)
            return Principal(account=account or "")
        if is_binding_path(path) and "authorization" not in headers and is_direct_loopback_peer(scope, headers):
            check_not_foreign_page(scope.get("method", "GET"), path, headers, self.policy)
            return Principal(account="")
        plaintext = read_credentials(headers, is_hosted_path=account is not None)
        token = await self.tokens.find_token(plaintext) if self.tokens is not None else None
        if token is None:
            raise _denied("The token is unknown, revoked or expired: make one with `tampu token create`.")
        if account is not None and not token.allows_account(account):
            raise _denied("The token was made for another account: use its account id in the URL.")
        wanted = scope_of_request(scope.get("method", "GET"), path)
        if not token.allows_scope(wanted):
            raise _denied(f"The token lacks the scope {wanted}: make one with `tampu token create --scope {wanted}`.")
        return Principal(account=account or token.account, token_id=token.token_id)

    async def _is_open(self) -> bool:
        if not is_loopback_host(self.policy.bind_host):
            return False
        return self.tokens is None or not await self.tokens.has_tokens()


@dataclass(frozen=True, slots=True)
class AccessMiddleware:
    """Plain ASGI: asks `access` before anything else runs and leaves the `Principal` in the scope's state."""

    app: ASGIApp
    access: AccessControl = field(default_factory=lambda: AccessControl(AccessPolicy()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            principal = await self.access.authorize(scope)
        except ApiError as error:
            if scope["type"] == "http":
                raise  # the gate around this layer writes the error bodies
            await send({"type": "websocket.close", "code": 1008, "reason": str(error)})
            return
        scope.setdefault("state", {})[PRINCIPAL] = principal
        await self.app(scope, receive, send)


def check_bind(host: str, *, has_tokens: bool) -> None:
    """Refuse to listen where others can reach a server that lets everybody in.

    Raises:
        ConfigError: with the command that fixes it.
    """
    if has_tokens or is_loopback_host(host):
        return
    raise ConfigError(
        "host",
        f"{host or '0.0.0.0'} can be reached from other machines and no API token exists. Make one with "
        "`tampu token create --account local --scope ai:read`, or listen on 127.0.0.1.",
    )


def read_credentials(headers: Mapping[str, str], *, is_hosted_path: bool) -> str:
    """The token in one of the three header forms.

    Raises:
        ApiError: 9106 when there is none, 6003 when Authorization is not `Bearer <token>`.
    """
    authorization = headers.get("authorization")
    if authorization is not None:
        match = _BEARER.match(authorization)
        if match is None:
            chain = ((6111, "Invalid format for Authorization header"),)
            raise ApiError(6003, error_chain=chain, hint=_SEND_BEARER)
        return match[1]
    if "x-auth-key" in headers and "x-auth-email" in headers:
        return headers["x-auth-key"].strip()
    if "x-auth-user-service-key" in headers:
        return headers["x-auth-user-service-key"].strip()
    if not is_hosted_path:  # these paths exist only here, and generic clients expect 401
        raise _denied(_SEND_BEARER)
    raise ApiError(9106, hint=_SEND_BEARER)


def account_of_path(path: str) -> str | None:
    """The account id in a hosted-style path; None for every other path."""
    match = _ACCOUNT_PATH.match(path)
    return None if match is None else match[1]


def scope_of_request(method: str, path: str) -> str:
    """The scope a token needs: ai:write for what changes stored state, ai:read for the rest, inference included."""
    is_write = method not in ("GET", "HEAD", "OPTIONS") and _WRITE_PATH.match(path) is not None
    return "ai:write" if is_write else "ai:read"


def is_binding_path(path: str) -> bool:
    """One of the routes that the Worker binding calls, without credentials."""
    return path == "/run" or path.startswith(_BINDING_PREFIXES)


def is_direct_loopback_peer(scope: Scope, headers: Mapping[str, str]) -> bool:
    """The peer is on this machine and speaks for itself: a reverse proxy here speaks for anybody."""
    client = scope.get("client")
    if client is None or any(name in headers for name in _FORWARDING_HEADERS):
        return False
    return is_loopback_host(client[0])


def is_loopback_host(host: str) -> bool:
    """A name or address that only this machine can reach."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def check_not_foreign_page(method: str, path: str, headers: Mapping[str, str], policy: AccessPolicy) -> None:
    """Refuse a web page that is not ours: cross-site calls, and DNS names that were re-bound to this machine.

    A browser always sends Origin with a POST, so a POST without one is a program and may use any Host: the Worker
    binding keeps the Host of the Worker's own request. A re-bound page can send GET without Origin, but not hide its
    Host.

    Raises:
        ApiError: 403.
    """
    host = headers.get("host", "")
    if "origin" in headers:
        origin = headers["origin"]
        is_known = _is_local_name(_host_name(origin.partition("://")[2]), policy) or origin in policy.allowed_origins
        if not is_known or not _is_local_name(_host_name(host), policy):
            hint = f"Web pages of {origin!r} may not call this server; allow it with `--allowed-origin {origin}`."
            raise ApiError(10000, status=403, hint=hint)
        return
    if method not in ("GET", "HEAD", "OPTIONS"):
        return
    name = _host_name(host)
    if name == BINDING_HOST or is_binding_path(path) or _is_local_name(name, policy):
        return
    hint = f"This server is not known as {name!r}; allow the name with `--allowed-host {name}`."
    raise ApiError(10000, status=403, hint=hint)


def _denied(hint: str) -> ApiError:
    return ApiError(10000, hint=hint, headers={"www-authenticate": "Bearer"})


def _headers(scope: Scope) -> dict[str, str]:
    """Header names in lower case; a header sent twice becomes one value that no check accepts."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _host_name(host: str) -> str:
    """The name in a Host header, without port and final dot; "" when it is malformed."""
    try:
        parsed = urlsplit(f"//{host}")
        if parsed.netloc != host or "@" in host or parsed.port == 0:
            return ""
    except ValueError:
        return ""
    return (parsed.hostname or "").rstrip(".")


def _as_browsers_send(origin: str) -> str:
    """The origin in lower case, without its scheme's own port; "" when the port is none."""
    try:
        parsed = urlsplit(origin.lower())
        host, port = parsed.hostname or "", parsed.port
    except ValueError:
        return ""
    address = f"[{host}]" if ":" in host else host
    return f"{parsed.scheme}://{address}" + ("" if port in (None, _OWN_PORTS.get(parsed.scheme)) else f":{port}")


def _is_host_name(host: str) -> bool:
    """A name or an address as `_host_name` gives it; anything else would never be equal to one."""
    return _NAME.fullmatch(host) is not None or (":" in host and _host_name(f"[{host}]") == host.lower())


def _is_local_name(name: str, policy: AccessPolicy) -> bool:
    name = name.lower().rstrip(".")
    if is_loopback_host(name) or name.endswith(_LOCAL_SUFFIXES):
        return True
    return name != "" and name in {known.lower().rstrip(".") for known in (policy.bind_host, *policy.allowed_hosts)}
