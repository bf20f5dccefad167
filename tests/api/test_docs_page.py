"""`/docs`: every route on one page, nothing from outside, and nothing that only some servers would say."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import httpx
import pytest

import tampu
from scripted_server import Server
from tampu.api.app import create_app
from tampu.api.auth import AccessControl, AccessPolicy
from tampu.api.config import ServerConfig
from tampu.api.docs_page import routes_page
from tampu.api.errors import KINDS
from tampu.serving.mock import mock_services
from tampu.serving.mock_script import Script
from tampu.serving.services import Services


class Locked:
    """A token store whose tokens nobody has."""

    async def has_tokens(self) -> bool:
        return True

    async def find_token(self, plaintext: str) -> None:
        return None


def client_of(services: Services, access: AccessControl | None = None, **settings: Any) -> httpx.AsyncClient:
    app = create_app(services, ServerConfig(**settings), access=access)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8900")


async def test_it_lists_every_route_of_the_openapi_document(client: httpx.AsyncClient) -> None:
    reply = await client.get("/docs")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    document = (await client.get(re.findall(r'<a href="([^"]+)">', reply.text)[0])).json()
    rows = re.findall(r"<tr><td>(\w+)</td><td><code>([^<]+)</code></td><td>([^<]+)</td></tr>", reply.text)
    assert sorted(rows) == sorted(
        (method.upper(), path, operation["summary"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    assert len(rows) > 20


async def test_it_needs_no_script_and_nothing_from_outside(client: httpx.AsyncClient) -> None:
    reply = await client.get("/docs")
    assert "<script" not in reply.text
    assert "//" not in reply.text  # no address but paths of this server
    assert "url(" not in reply.text
    policy = reply.headers["content-security-policy"]
    style = re.findall(r"<style>(.*)</style>", reply.text, re.DOTALL)[0]
    known = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{known}'; ")
    assert "unsafe" not in policy
    assert (await client.get("/redoc")).status_code == 404  # a page of the framework that loads its scripts elsewhere
    assert (await client.get("/docs/oauth2-redirect")).status_code == 404


@pytest.mark.parametrize("bind_host", ["127.0.0.1", "0.0.0.0"])
async def test_it_is_open_and_says_the_same_on_every_server(server: Server, bind_host: str) -> None:
    access = AccessControl(AccessPolicy(bind_host=bind_host, is_strict=True), Locked())
    async with (
        client_of(server.services, access, host=bind_host, is_strict=True) as locked,
        client_of(mock_services(Script(KINDS))) as mock,
    ):
        page = await locked.get("/docs")
        assert page.status_code == 200
        assert page.text == (await mock.get("/docs")).text
        for path in ("/openapi.json", "/docs/", "/docs/x", "/metrics", "/v1/models"):
            assert (await locked.get(path)).status_code == 401
        assert (await locked.post("/docs")).status_code == 405
    card = server.services.model_card
    for secret in (tampu.__version__, card.name, card.weights_name):
        assert secret not in page.text


def test_what_the_document_says_is_text() -> None:
    operation = {"tags": ["<b>"], "summary": "<script>alert(1)</script> & more"}
    page = routes_page({"paths": {'/"<i>': {"get": operation}}})
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "<b>" not in page
    assert "<i>" not in page
