"""The context window on the wire: 131,072 tokens are taken, one more is refused with counted numbers and no byte of a
stream; and when memory or an option makes the window smaller, the banner and every models endpoint say so."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from checkpoints import LLAMA3_SPECIALS, TINY, random_weights, write_gguf
from scripted_server import ACCOUNT, MODEL, RUN_PATH, Server
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.cli.composition import EngineSettings, LoadedModel, load_model
from tampu.cli.serve import banner_facts
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.serving.services import Services

CONTEXT = 131_072
LONG_TEXT = "x" * 130_000
LONG_MESSAGES = [{"role": "user", "content": LONG_TEXT}]
BINDING_HEADERS = {"cf-consn-sdk-version": "2.0.0", "cf-consn-model-id": MODEL, "host": "workers-binding.ai"}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "native": (RUN_PATH, {"prompt": LONG_TEXT, "raw": True}),
    "native, messages": (RUN_PATH, {"messages": LONG_MESSAGES}),
    "binding": ("/run?version=3", {"messages": LONG_MESSAGES}),
    "chat": ("/v1/chat/completions", {"model": MODEL, "messages": LONG_MESSAGES}),
    "completions": ("/v1/completions", {"model": MODEL, "prompt": LONG_TEXT}),
    "responses": ("/v1/responses", {"model": MODEL, "input": LONG_TEXT}),
    "account's chat": (
        f"/client/v4/accounts/{ACCOUNT}/ai/v1/chat/completions",
        {"model": MODEL, "messages": LONG_MESSAGES},
    ),
}


@pytest.fixture(scope="module")
def wide() -> Iterator[Server]:
    """A server with the whole context. One for all tests: the prefix cache then knows the long prompt."""
    made = Server(max_model_len=CONTEXT)
    yield made
    made.close()


async def post(wide: Server, route: str, max_tokens: int, *, stream: bool = False) -> httpx.Response:
    path, members = ROUTES[route]
    limit = "max_output_tokens" if route == "responses" else "max_tokens"
    body: dict[str, Any] = {**members, limit: max_tokens, "stream": stream}
    headers = {}
    if route == "binding":
        body, headers = {"inputs": body, "options": {}}, BINDING_HEADERS
    async with wide.client() as client:
        return await client.post(path, json=body, headers=headers)


def num_prompt_tokens(reply: httpx.Response) -> int:
    body = reply.json()
    usage = body.get("result", body)["usage"]
    return int(usage.get("prompt_tokens", usage.get("input_tokens")))


@pytest.mark.parametrize("route", ROUTES)
async def test_the_window_is_filled_to_the_last_token_and_not_beyond(wide: Server, route: str) -> None:
    first = await post(wide, route, 1)
    assert first.status_code == 200, first.text
    counted = num_prompt_tokens(first)
    assert counted >= len(LONG_TEXT)
    fits = await post(wide, route, CONTEXT - counted)
    assert fits.status_code == 200, fits.text
    assert len(wide.requests[-1].prompt_token_ids) == counted
    served = len(wide.requests)
    for stream in (False, True):
        refused = await post(wide, route, CONTEXT - counted + 1, stream=stream)
        assert refused.status_code == 413
        assert refused.headers["content-type"].startswith("application/json")
        body = refused.json()
        (error,) = body["errors"]
        assert error["code"] == 5021
        assert re.search(
            rf"input and maximum output tokens \({CONTEXT + 1}\) exceeded this model context window limit "
            rf"\({CONTEXT}\)\. The prompt has {counted} tokens and max_tokens is {CONTEXT - counted + 1}",
            error["message"],
        )
        if "v1" in ROUTES[route][0].split("/ai/")[-1]:
            assert body["error"]["code"] == "context_length_exceeded"
        if route == "binding":
            assert body["internalCode"] == 5021
    assert len(wide.requests) == served


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(TINY, max_position_embeddings=CONTEXT, num_hidden_layers=1)
    path = tmp_path_factory.mktemp("served") / "long.gguf"
    return write_gguf(path, config, random_weights(config), specials=LLAMA3_SPECIALS)


@dataclasses.dataclass(frozen=True)
class Served:
    """A real model that is served, and a client of it."""

    loaded: LoadedModel
    http: httpx.AsyncClient

    def banner(self) -> str:
        facts = banner_facts(self.loaded, None, ServerConfig(), 1.0)
        return "\n".join((*(f"{label}: {value}" for label, value in facts.rows), *facts.notices))

    async def properties(self) -> dict[str, str]:
        """Of the catalogue's item."""
        reply = await self.http.get(f"/client/v4/accounts/{ACCOUNT}/ai/models/search")
        return {each["property_id"]: each["value"] for each in reply.json()["result"][0]["properties"]}

    async def listed(self) -> dict[str, Any]:
        """OpenAI's item."""
        item: dict[str, Any] = (await self.http.get("/v1/models")).json()["data"][0]
        return item


LIMITS = {
    # 64 blocks of 16 tokens; one layer, keys and values, 2 heads of 16 halves
    "memory": (EngineConfig(kv_cache_bytes=64 * 16 * 128), 1024, 1024, "the KV cache holds no more"),
    "option": (EngineConfig(max_model_len=3000), 3000, 4 * 3008, "as --max-model-len says"),
}


@pytest.fixture(params=LIMITS)
async def served(request: pytest.FixtureRequest, model_file: Path) -> AsyncIterator[tuple[str, Served]]:
    engine = LIMITS[request.param][0]
    loaded = load_model(EngineSettings(str(model_file), "cpu", engine, CpuRunnerConfig(num_threads=1)))
    services = Services(
        generator=loaded.generator, model_card=loaded.card, engine=loaded.engine, metrics=loaded.metrics
    )
    transport = httpx.ASGITransport(create_app(services, ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8900") as http:
        yield request.param, Served(loaded, http)
    loaded.close()


async def test_a_smaller_window_is_shown_everywhere(served: tuple[str, Served]) -> None:
    name, it = served
    _, limit, room, reason = LIMITS[name]
    banner = it.banner()
    assert f"context: {limit:,} tokens a request (the model was made for {CONTEXT:,})" in banner
    assert f"KV cache: {room:,} tokens over all requests (" in banner
    assert f"A request may hold {limit:,} of the model's {CONTEXT:,} tokens" in banner
    assert reason in banner
    properties = await it.properties()
    assert properties["context_window"] == str(limit)
    assert properties["tampu_model_context_window"] == str(CONTEXT)
    assert properties["tampu_kv_cache_tokens"] == str(room)
    listed = await it.listed()
    assert listed["max_model_len"] == limit
    assert listed["tampu"]["model_context_len"] == CONTEXT
    assert listed["tampu"]["kv_cache_tokens"] == room


async def test_a_smaller_window_is_what_counts(served: tuple[str, Served]) -> None:
    name, it = served
    limit = LIMITS[name][1]
    refused = await it.http.post(RUN_PATH, json={"prompt": "hello " * 10, "raw": True, "max_tokens": limit})
    assert refused.status_code == 413
    assert f"context window limit ({limit})" in refused.json()["errors"][0]["message"]
