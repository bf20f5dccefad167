"""What the hosted API layer answers before a model is reached: no route, wrong method, account or credentials."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from scripted_server import ACCOUNT, MODEL, RUN_PATH, Server

BASE = "/client/v4/accounts"


@pytest.mark.parametrize(
    "path", ["/client/v4", "/client/v4/nope", f"{BASE}/{ACCOUNT}/ai/nope", f"{BASE}/{ACCOUNT}/ai/v1"]
)
async def test_no_route_is_7000(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 400
    assert response.json()["errors"][0] == {"message": "No route for that URI", "code": 7000}
    assert response.json()["result"] is None
    assert "cf-ai-req-id" not in response.headers
    assert "cf-ray" in response.headers


async def test_an_unknown_path_of_our_own_is_404(client: httpx.AsyncClient) -> None:
    response = await client.get("/nope")
    assert response.status_code == 404
    assert response.json()["errors"][0]["code"] == 7000


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_another_method_is_7001(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, RUN_PATH)
    assert response.status_code == 405
    assert response.json()["errors"] == [{"message": f"{method} not supported for requested URI.", "code": 7001}]
    assert response.json()["result"] is None


@pytest.mark.parametrize("account", ["abc", "0" * 31, "0" * 33, "g" * 32, "A" * 32])
async def test_strict_mode_wants_an_account_id_of_the_hosted_form(
    server: Server, client: httpx.AsyncClient, strict: httpx.AsyncClient, account: str
) -> None:
    path = f"{BASE}/{account}/ai/run/{MODEL}"
    refused = await strict.post(path, json={"prompt": "hi"})
    assert refused.status_code == 404
    (error,) = refused.json()["errors"]
    expected = f"Could not route to {path}, perhaps your object identifier is invalid?"
    assert error == {"message": expected, "code": 7003}
    assert refused.json()["result"] is None
    assert (await client.post(path, json={"prompt": "hi"})).status_code == 200


async def test_strict_mode_wants_credentials(server: Server) -> None:
    async with server.client(is_strict=True) as client:
        missing = await client.post(RUN_PATH, json={"prompt": "hi"})
        malformed = await client.post(RUN_PATH, json={"prompt": "hi"}, headers={"authorization": "Basic x"})
        given = await client.post(RUN_PATH, json={"prompt": "hi"}, headers={"authorization": "Bearer x"})
    assert missing.status_code == 400
    assert missing.json()["errors"][0]["code"] == 9106
    assert malformed.status_code == 400
    assert malformed.json()["errors"][0]["error_chain"][0]["code"] == 6111
    assert given.status_code == 200


async def test_strict_mode_takes_the_account_and_token_that_the_documentation_shows(server: Server) -> None:
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text("utf-8")
    found = re.search(r"^export CLOUDFLARE_ACCOUNT_ID=(\S+) CLOUDFLARE_AUTH_TOKEN=(\S+)$", page, re.MULTILINE)
    assert found is not None
    async with server.client(is_strict=True) as client:
        path, headers = f"{BASE}/{found[1]}/ai/run/{MODEL}", {"authorization": f"Bearer {found[2]}"}
        assert (await client.post(path, json={"prompt": "hi"}, headers=headers)).status_code == 200
        local = await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"})
        binding = {"cf-consn-model-id": MODEL}
        bound = await client.post("/run", json={"inputs": {"prompt": "hi"}}, headers=binding)
    assert (local.status_code, bound.status_code) == (200, 200)


async def test_an_encoded_slash_cannot_smuggle_another_account_past_the_door(client: httpx.AsyncClient) -> None:
    response = await client.post(f"{BASE}/a%2Fb/ai/run/{MODEL}", json={"prompt": "hi"})
    assert response.status_code == 400
    assert response.json()["errors"][0]["code"] == 7000


async def test_unknown_query_keys_and_affinity_headers_are_accepted(client: httpx.AsyncClient) -> None:
    response = await client.post(
        f"{RUN_PATH}?queueRequest=true&reasoning=low&x", json={"prompt": "hi"}, headers={"x-session-affinity": "s1"}
    )
    assert response.status_code == 200


async def test_reject_if_busy(server: Server, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"prompt": "hi", "options": {"rejectIfBusy": True}}
    assert (await client.post(RUN_PATH, json=body)).status_code == 200

    class _Busy:
        num_waiting = 3

    monkeypatch.setattr(server.engine, "stats", _Busy)
    refused = await client.post(RUN_PATH, json=body)
    assert refused.status_code == 429
    assert refused.json()["errors"][0]["code"] == 3040
    assert (await client.post(RUN_PATH, json={"prompt": "hi"})).status_code == 200


async def test_an_empty_account_id_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"/client/v4/accounts//ai/run/{MODEL}", json={"prompt": "hi"})
    assert answer.json()["errors"][0]["code"] == 7000
    assert "account id in the URL is empty" in answer.json()["errors"][0]["message"]
