"""Clients that go through AI Gateway keep its path when they are pointed here, and find the account's own routes."""

from __future__ import annotations

import httpx
import pytest

from scripted_server import ACCOUNT, MODEL, RUN_PATH

GATEWAY = f"/v1/{ACCOUNT}/default/workers-ai"


@pytest.mark.parametrize("path", [MODEL, f"run/{MODEL}", MODEL.replace("/", "%2F"), f"run/{MODEL.replace('@', '%40')}"])
async def test_a_run_is_answered_like_the_accounts_own(client: httpx.AsyncClient, path: str) -> None:
    plain = await client.post(RUN_PATH, json={"prompt": "hi"})
    reached = await client.post(f"{GATEWAY}/{path}", json={"prompt": "hi"})
    assert reached.status_code == plain.status_code == 200
    assert reached.json()["result"]["response"] == plain.json()["result"]["response"]


async def test_openai_routes_are_reached(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    reached = await client.post(f"{GATEWAY}/v1/chat/completions", json=body)
    assert reached.status_code == 200
    assert reached.json()["choices"][0]["message"]["content"] == "Hello, world"


async def test_errors_have_the_envelope_of_the_route_that_was_reached(client: httpx.AsyncClient) -> None:
    native = await client.post(f"{GATEWAY}/{MODEL}", json={})
    assert (native.status_code, native.json()["errors"][0]["code"]) == (400, 5006)
    unknown = await client.post(f"{GATEWAY}/v1/nothing", json={})
    assert "error" in unknown.json()


async def test_access_control_judges_the_path_that_is_routed(strict: httpx.AsyncClient) -> None:
    del strict.headers["authorization"]
    refused = await strict.post(f"{GATEWAY}/{MODEL}", json={"prompt": "hi"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, 9106)


@pytest.mark.parametrize(
    "path", ["/v1/models/a/workers-ai/b", f"/v1/{ACCOUNT}/default/workers-ai/", "/v1/workers-ai/x"]
)
async def test_other_paths_are_left_alone(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path, json={"prompt": "hi"})).status_code in (404, 405)
