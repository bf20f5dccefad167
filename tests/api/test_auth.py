"""Access control: who gets in, what the others are told, and which web pages are kept out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from scripted_server import Server
from tampu.api.app import create_app, render_error
from tampu.api.auth import (
    PRINCIPAL,
    AccessControl,
    AccessMiddleware,
    AccessPolicy,
    Principal,
    check_bind,
    is_loopback_host,
)
from tampu.api.config import ServerConfig
from tampu.api.middleware import RequestGate
from tampu.core.errors import ConfigError
from tampu.serving.metrics import Metrics
from tampu.store.tokens import TokenRecord

RUN = "/client/v4/accounts/acme/ai/run/@cf/meta/llama-3.1-8b-instruct-fast"
TOKENS = {
    "reader": TokenRecord("aaa", "acme", frozenset({"ai:read"}), "", created_at=0),
    "writer": TokenRecord("bbb", "*", frozenset({"ai:write"}), "", created_at=0),
}


class FakeTokens:
    """A token store in a dictionary."""

    def __init__(self, tokens: dict[str, TokenRecord]) -> None:
        self.tokens = tokens

    async def find_token(self, plaintext: str) -> TokenRecord | None:
        return self.tokens.get(plaintext)

    async def has_tokens(self) -> bool:
        return bool(self.tokens)


def client(
    tokens: dict[str, TokenRecord] | None = None,
    *,
    peer: str = "127.0.0.1",
    base_url: str = "http://127.0.0.1:8900",
    **policy: Any,
) -> httpx.AsyncClient:
    async def show(request: Request) -> JSONResponse:
        principal: Principal = request.scope["state"][PRINCIPAL]
        return JSONResponse({"account": principal.account, "token": principal.token_id, "tenant": principal.tenant})

    app = Starlette(routes=[Route("/{path:path}", show, methods=["GET", "POST", "PUT"])])
    access = AccessControl(AccessPolicy(**policy), FakeTokens(tokens or {}))
    config = ServerConfig(is_strict=access.policy.is_strict)
    context: Any = SimpleNamespace(config=config, services=SimpleNamespace(metrics=Metrics()))
    gate = RequestGate(
        AccessMiddleware(app, access),
        config=config,
        render_error=lambda scope, error: render_error(scope, error, context),
    )
    transport = httpx.ASGITransport(gate, client=(peer, 5000))
    return httpx.AsyncClient(transport=transport, base_url=base_url)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("headers", [{}, bearer("None"), bearer(""), {"authorization": "Basic eDp5"}])
async def test_an_open_server_takes_anything(headers: dict[str, str]) -> None:
    async with client() as http:
        reply = await http.post(RUN, headers=headers)
    assert reply.json() == {"account": "acme", "token": None, "tenant": ""}


async def test_strict_wants_well_formed_credentials_even_when_open() -> None:
    async with client(is_strict=True) as http:
        missing = await http.post(RUN)
        malformed = await http.post(RUN, headers={"authorization": "Token x"})
        local_path = await http.get("/v1/models")
        fine = await http.post(RUN, headers=bearer("whatever"))
    assert missing.status_code == 400
    assert missing.json() == {
        "success": False,
        "errors": [{"code": 9106, "message": "Missing X-Auth-Key, X-Auth-Email or Authorization headers"}],
        "messages": [],
        "result": None,
    }
    assert malformed.status_code == 400
    chain = [{"code": 6111, "message": "Invalid format for Authorization header"}]
    assert malformed.json()["errors"] == [{"code": 6003, "message": "Invalid request headers", "error_chain": chain}]
    assert local_path.status_code == 200
    assert fine.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", RUN, bearer("reader"), 200),
        ("POST", RUN, {"authorization": "bearer reader"}, 200),
        ("POST", RUN, {"x-auth-email": "a@b", "x-auth-key": "reader"}, 200),
        ("POST", RUN, {"x-auth-user-service-key": "reader"}, 200),
        ("POST", RUN, {"x-auth-key": "reader"}, 400),
        ("POST", RUN, {}, 400),
        ("POST", RUN, bearer("stranger"), 401),
        ("POST", RUN, {"authorization": "Basic cmVhZGVy"}, 400),
        ("POST", RUN, {"authorization": "Bearer a b"}, 400),
        ("POST", RUN, {"authorization": "Bearer "}, 400),
        ("POST", RUN.replace("acme", "other"), bearer("reader"), 401),
        ("POST", RUN.replace("acme", "other"), bearer("writer"), 200),
        ("POST", "/v1/chat/completions", bearer("reader"), 200),
        ("POST", "/v1/chat/completions", {}, 401),
        ("GET", "/client/v4/accounts/acme/ai/finetunes", bearer("reader"), 200),
        ("POST", "/client/v4/accounts/acme/ai/finetunes", bearer("reader"), 401),
        ("POST", "/client/v4/accounts/acme/ai/finetunes/", bearer("reader"), 401),
        ("POST", "/client/v4/accounts/acme/ai/finetunes/x/finetune-assets", bearer("reader"), 401),
        ("POST", "/client/v4/accounts/acme/ai/finetunes", bearer("writer"), 200),
        ("GET", "/health", {}, 200),
        ("GET", "/ready", {}, 200),
        ("GET", "/docs", {}, 200),
    ],
)
async def test_with_tokens_each_route_asks_for_one(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with client(TOKENS) as http:
        reply = await http.request(method, path, headers=headers)
    assert reply.status_code == status, reply.text
    if status == 401:
        assert reply.json()["errors"][0]["code"] == 10000
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs/",
        "/docs/x",
        "/redoc",
        "/openapi.json",
        "/metrics",
        "/health/",
        "/health/x",
        "//health",
        "/nothing",
        "/HEALTH",
    ],
)
async def test_every_other_path_is_denied_by_default(path: str) -> None:
    async with client(TOKENS) as http:
        assert (await http.get(f"http://127.0.0.1:8900{path}")).status_code == 401


async def test_host_header_does_not_change_the_path_that_is_judged() -> None:
    async with client(TOKENS) as http:
        for host, status in (("127.0.0.1/health?", 400), ("health", 401), ("127.0.0.1:8900#/health", 400)):
            assert (await http.get("/v1/models", headers={"host": host})).status_code == status


async def test_two_authorization_headers_are_refused() -> None:
    async with client(TOKENS) as http:
        reply = await http.post(RUN, headers=[("authorization", "Bearer x"), ("authorization", "Bearer reader")])
    assert reply.json()["errors"][0]["code"] == 6003


async def test_a_refusal_says_what_to_do_except_in_strict_mode() -> None:
    async with client(TOKENS) as http:
        default = (await http.post(RUN, headers=bearer("stranger"))).json()["errors"][0]["message"]
        account = (await http.post(RUN.replace("acme", "x"), headers=bearer("reader"))).json()["errors"][0]["message"]
        finetunes = "/client/v4/accounts/acme/ai/finetunes"
        scope = (await http.post(finetunes, headers=bearer("reader"))).json()["errors"][0]["message"]
    async with client(TOKENS, is_strict=True) as http:
        strict = (await http.post(RUN, headers=bearer("stranger"))).json()["errors"][0]["message"]
    assert strict == "Authentication error"
    assert default.startswith("Authentication error. ")
    assert "tampu token create" in default
    assert "another account" in account
    assert "--scope ai:write" in scope


async def test_openai_clients_find_an_error_object() -> None:
    async with client(TOKENS) as http:
        body = (await http.post("/client/v4/accounts/acme/ai/v1/chat/completions", headers=bearer("x"))).json()
    assert body["error"]["type"] == "authentication_error"
    assert body["error"]["code"] == "invalid_api_key"
    assert body["errors"][0]["code"] == 10000


async def test_tenants_are_accounts_of_token_holders() -> None:
    async with client(TOKENS) as http:
        reader = (await http.post("/v1/completions", headers=bearer("reader"))).json()
        writer = (await http.post(RUN, headers=bearer("writer"))).json()
    assert reader == {"account": "acme", "token": "aaa", "tenant": "acme"}
    assert writer == {"account": "acme", "token": "bbb", "tenant": "acme"}


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        ("127.0.0.1", {"host": "workers-binding.ai"}, 200),
        ("::1", {"host": "workers-binding.ai"}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("192.0.2.7", {"host": "workers-binding.ai"}, 401),
        ("192.0.2.7", bearer("reader"), 200),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, 401),
        ("127.0.0.1", bearer("stranger"), 401),
        ("127.0.0.1", {"origin": "http://evil.example"}, 403),
    ],
)
async def test_the_binding_is_trusted_by_connection(peer: str, headers: dict[str, str], status: int) -> None:
    async with client(TOKENS, peer=peer) as http:
        for path in ("/run?version=3", "/ai-gateway/run?version=3"):
            assert (await http.post(path, headers=headers)).status_code == status
        assert (await http.get("/ai-api/models/search", headers=headers)).status_code == status
        expected = 200 if headers == bearer("reader") else 401
        assert (await http.post("/running", headers=headers)).status_code == expected


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", RUN, {"host": "workers-binding.ai"}, 200),
        ("POST", "/run", {"host": "my-worker.example"}, 200),
        ("GET", "/ai-api/models/search", {"host": "my-worker.example"}, 200),
        ("GET", "/v1/models", {"host": "localhost:8900"}, 200),
        ("GET", "/v1/models", {"host": "[::1]:8900"}, 200),
        ("GET", "/v1/models", {"host": "tampu.localhost:8900"}, 200),
        ("GET", "/v1/models", {"host": "host.docker.internal:8900"}, 200),
        ("GET", "/v1/models", {"host": "evil.example:8900"}, 403),
        ("GET", "/v1/models", {"host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/v1/models", {"host": "x@localhost"}, 400),
        ("GET", "/v1/models", {"host": ""}, 400),
        ("GET", "/v1/models", {"host": "ai.example"}, 200),
        ("POST", RUN, {"origin": "http://localhost:3000"}, 200),
        ("POST", RUN, {"origin": "https://app.example"}, 200),
        ("POST", RUN, {"origin": "https://app.example:444"}, 403),
        ("POST", RUN, {"origin": "http://evil.example"}, 403),
        ("POST", RUN, {"origin": "null"}, 403),
        ("POST", RUN, {"origin": "http://["}, 403),
        ("POST", RUN, {"origin": "http://evil.example:8900", "host": "evil.example:8900"}, 403),
        ("POST", RUN, {"origin": "http://localhost:3000", "host": "evil.example"}, 403),
        ("POST", "/run", {"origin": "http://evil.example", "host": "workers-binding.ai"}, 403),
    ],
)
async def test_foreign_web_pages_are_kept_out(method: str, path: str, headers: dict[str, str], status: int) -> None:
    policy = {"allowed_hosts": ("ai.example",), "allowed_origins": ("https://app.example",)}
    async with client(**policy) as http:
        reply = await http.request(method, path, headers=headers)
    assert reply.status_code == status, reply.text


def test_a_public_bind_without_a_token_is_refused_with_the_command_that_fixes_it() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "", "example.org", "127.evil.example"):
        with pytest.raises(ConfigError, match="tampu token create --account local --scope ai:read`"):
            check_bind(host, has_tokens=False)
        check_bind(host, has_tokens=True)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "[::1]"):
        check_bind(host, has_tokens=False)
    assert not is_loopback_host("0.0.0.0")


async def test_a_public_bind_stays_closed_when_the_last_token_is_forgotten() -> None:
    async with client({}, bind_host="0.0.0.0") as http:
        assert (await http.post(RUN)).status_code == 400
        assert (await http.post(RUN, headers=bearer("reader"))).status_code == 401


@pytest.mark.parametrize("host", ["http://x", "ai.example:8900", "x/y", "*", "*.example", "", "[::1]", "a b", "a@b"])
def test_a_host_that_is_not_a_name_is_refused_with_the_fix(host: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed_hosts: .* is not a host name: write the name alone"):
        AccessPolicy(allowed_hosts=(host,))


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("ai.example", "ai.example:8900"),
        ("AI.example.", "ai.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "[2001:db8::1]"),
    ],
)
async def test_an_allowed_host_is_known(allowed: str, host: str) -> None:
    async with client(allowed_hosts=(allowed,)) as http:
        assert (await http.get("/v1/models", headers={"host": host})).status_code != 403
        assert (await http.get("/v1/models", headers={"host": "other.example"})).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        "HTTP://A",
        "http://a:80",
        "http://a:",
        "http://a:99999",
        "*",
        "https://*.example",
        "app.example",
        "//app.example",
        "https://app.example/",
    ],
)
def test_wildcard_origins_are_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        AccessPolicy(allowed_origins=(origin,))


async def test_a_websocket_without_a_token_is_closed() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = AccessMiddleware(Starlette(), AccessControl(AccessPolicy(), FakeTokens(TOKENS)))
    scope = {"type": "websocket", "path": "/socket", "headers": [], "client": ("127.0.0.1", 1)}
    await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:5173", True),
        ("https://app.localhost", True),
        ("http://127.0.0.1:3000", True),
        ("http://[::1]:3000", True),
        ("https://app.example", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://evil.example/localhost", False),
        ("null", False),
    ],
)
async def test_pages_of_this_machine_may_read_answers_and_refusals(
    server: Server, origin: str, is_allowed: bool
) -> None:
    access = AccessControl(AccessPolicy(allowed_origins=("https://app.example",)), FakeTokens(TOKENS))
    transport = httpx.ASGITransport(create_app(server.services, ServerConfig(), access=access))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        asked = await http.options(RUN, headers={**preflight, "access-control-request-headers": "authorization"})
        answered = await http.post(RUN, json={"prompt": "Hi"}, headers={"origin": origin, **bearer("reader")})
        refused = await http.post(RUN, json={"prompt": "Hi"}, headers={"origin": origin, **bearer("stranger")})
    assert asked.status_code == (200 if is_allowed else 400)
    assert refused.status_code == 401
    for reply in (asked, answered, refused):
        assert reply.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
        assert "access-control-allow-credentials" not in reply.headers
