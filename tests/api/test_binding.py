"""The Worker binding: bare results, its error objects, Miniflare's proxy headers and the old Wrangler route."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from scripted_server import ACCOUNT, MODEL, Server, frames_of

INPUTS = {"messages": [{"role": "user", "content": "hi"}]}
HEADERS = {"cf-consn-sdk-version": "2.0.0", "cf-consn-model-id": MODEL, "host": "workers-binding.ai"}


async def test_a_result_comes_bare_with_the_exact_content_type(client: httpx.AsyncClient) -> None:
    for options in ({}, {"returnRawResponse": True, "queueRequest": True, "tags": ["a"], "unknown": 1}):
        response = await client.post("/run?version=3", json={"inputs": INPUTS, "options": options}, headers=HEADERS)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json()["response"] == "Hello, world"
        assert response.headers["cf-ai-req-id"]


async def test_a_stream_is_passed_as_a_stream(client: httpx.AsyncClient) -> None:
    body = {"inputs": {**INPUTS, "stream": True}, "options": {}}
    response = await client.post("/run?version=3", json=body, headers=HEADERS)
    assert response.headers["content-type"] == "text/event-stream"
    assert "".join(frame["response"] for frame in frames_of(response.text)) == "Hello, world"


async def test_a_prefix_before_the_model_is_dropped(client: httpx.AsyncClient) -> None:
    headers = {**HEADERS, "cf-consn-model-id": f"beta:{MODEL}"}
    response = await client.post("/run?version=3", json={"inputs": INPUTS}, headers=headers)
    assert response.status_code == 200


async def test_the_gateway_path_answers_alike_and_names_a_log(client: httpx.AsyncClient) -> None:
    body = {"inputs": INPUTS, "options": {"gateway": {"id": "mine", "skipCache": True}}}
    response = await client.post("/ai-gateway/run?version=3", json=body, headers=HEADERS)
    assert response.json()["response"] == "Hello, world"
    assert response.headers["cf-aig-log-id"]


@pytest.mark.parametrize(
    ("inputs", "status", "code", "description"),
    [
        ({}, 400, 5006, "Error: oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt', "
                        "required properties at '/' are 'messages'"),
        ({"prompt": "x" * 9000}, 413, 5021, "The estimated number of input and maximum output tokens ("),
        ({"prompt": "hi", "image": "x"}, 400, 8001, "Invalid input: the parameter 'image' is not supported"),
        (None, 400, 5006, "Error: oneOf at '/' not met, 0 matches: "),
    ],
)  # fmt: skip
async def test_errors_carry_code_name_and_description(
    client: httpx.AsyncClient, inputs: Any, status: int, code: int, description: str
) -> None:
    response = await client.post("/run?version=3", json={"inputs": inputs, "options": {}}, headers=HEADERS)
    body = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert body["internalCode"] == code
    assert body["name"] == "AiError"
    assert body["description"].startswith(description)
    assert body["message"] == f"AiError: {body['description']}"
    assert body["errors"] == [{"code": code, "message": body["description"]}]


async def test_unknown_models(client: httpx.AsyncClient) -> None:
    headers = {**HEADERS, "cf-consn-model-id": "@cf/nope"}
    plain = await client.post("/run?version=3", json={"inputs": INPUTS}, headers=headers)
    assert (plain.status_code, plain.json()["internalCode"]) == (400, 5007)
    hint = "This server answers to @cf/meta/llama-3.1-8b-instruct-fast."
    assert plain.json()["description"] == f"No such model @cf/nope or task. {hint}"
    gateway = await client.post("/ai-gateway/run?version=3", json={"inputs": INPUTS}, headers=headers)
    assert (gateway.status_code, gateway.json()["internalCode"]) == (404, 7003)
    assert gateway.json()["name"] == "AiGatewayError"


async def test_what_the_protocol_has_and_we_do_not_is_refused_by_name(client: httpx.AsyncClient) -> None:
    old = await client.post("/run?version=2", json={"inputs": INPUTS}, headers=HEADERS)
    assert (old.status_code, old.json()["internalCode"]) == (405, 5019)
    binary = await client.post("/run?version=3&userInputs=%7B%7D", content=b"\x00\x01", headers=HEADERS)
    assert (binary.status_code, binary.json()["internalCode"]) == (400, 8001)
    assert "binary inputs" in binary.json()["description"]
    socket = await client.get("/run?version=3&body=%7B%7D", headers=HEADERS)
    assert (socket.status_code, socket.json()["internalCode"]) == (400, 8001)
    assert "websocket" in socket.json()["description"]
    nameless = await client.post("/run?version=3", json={"inputs": INPUTS})
    assert (nameless.status_code, nameless.json()["internalCode"]) == (400, 3003)


async def test_miniflares_remote_proxy_is_unwrapped(client: httpx.AsyncClient) -> None:
    wrapped = {f"mf-header-{name}": value for name, value in HEADERS.items()}
    headers = {"mf-url": "https://workers-binding.ai/run?version=3", "mf-binding": "AI", **wrapped}
    response = await client.post("/", json={"inputs": INPUTS, "options": {}}, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["response"] == "Hello, world"
    bad = await client.post("/anything", json={"inputs": {}}, headers=headers)
    assert bad.json()["internalCode"] == 5006


@pytest.mark.parametrize("url", ["https://workers-binding.ai/metrics", "http://[", "https://x/client/v4/user", ""])
async def test_the_proxy_leads_to_the_bindings_own_paths_only(client: httpx.AsyncClient, url: str) -> None:
    response = await client.get("/", headers={"mf-url": url, "mf-binding": "AI"})
    assert response.status_code == 404


async def test_a_proxied_request_cannot_choose_its_origin(client: httpx.AsyncClient) -> None:
    headers = {"mf-url": "https://workers-binding.ai/run?version=3", "mf-binding": "AI", "origin": "https://evil.example",
               "mf-header-origin": "http://127.0.0.1", "mf-header-cf-consn-model-id": MODEL}  # fmt: skip
    response = await client.post("/", json={"inputs": INPUTS}, headers=headers)
    assert response.status_code == 403


async def test_old_wranglers_proxy_route(client: httpx.AsyncClient) -> None:
    path = f"/client/v4/accounts/{ACCOUNT}/ai/run/proxy"
    headers = {"cf-consn-model-id": MODEL, "x-forwarded": "http://workers-binding.ai/run?version=3"}
    response = await client.post(path, json={"inputs": INPUTS, "options": {}}, headers=headers)
    assert response.json()["response"] == "Hello, world"
    bad = await client.post(path, json={"inputs": {}}, headers=headers)
    assert bad.json()["internalCode"] == 5006
    lost = await client.post(path, json={"inputs": INPUTS}, headers={"cf-consn-model-id": MODEL})
    assert lost.json()["internalCode"] == 3003


async def test_the_result_equals_the_rest_result(server: Server, client: httpx.AsyncClient) -> None:
    rest = await client.post(f"/client/v4/accounts/{ACCOUNT}/ai/run/{MODEL}", json=INPUTS)
    bound = await client.post("/run?version=3", json={"inputs": INPUTS}, headers=HEADERS)
    expected = rest.json()["result"]
    expected["usage"]["prompt_tokens_details"] = bound.json()["usage"]["prompt_tokens_details"]
    assert bound.json() == expected
