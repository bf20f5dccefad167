"""The official `cloudflare` package for Python, unmodified, against a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import cloudflare
import orjson
import pytest

from fake_embedder import DIMENSIONS, FakeEmbedder
from live_server import live
from scripted_server import ACCOUNT, MODEL, Server
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.api.errors import KINDS
from tampu.serving.metrics import Metrics
from tampu.serving.mock import MockGenerator, mock_model_card
from tampu.serving.mock_script import Script
from tampu.serving.services import Services
from tampu.store.database import open_database
from tampu.store.token_cache import TokenCache
from tampu.store.tokens import TokenStore

MESSAGES: Any = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
BGE = "@cf/baai/bge-small-en-v1.5"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The REST base of the real engine over the scripted runner."""
    server = Server()
    services = replace(server.services, embeddings=FakeEmbedder())
    with live(create_app(services, ServerConfig())) as base:
        yield base + "/client/v4"
    server.close()


@pytest.fixture
def client(url: str) -> Iterator[cloudflare.Cloudflare]:
    with cloudflare.Cloudflare(base_url=url, api_token="any") as made:
        yield made


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[cloudflare.AsyncCloudflare]:
    async with cloudflare.AsyncCloudflare(base_url=url, api_token="any") as made:
        yield made


def test_run_with_messages_and_prompt(client: cloudflare.Cloudflare) -> None:
    answer: Any = client.ai.run(MODEL, account_id=ACCOUNT, messages=MESSAGES)
    assert answer["response"] == "Hello, world"
    assert answer["usage"]["completion_tokens"] == 13
    completed: Any = client.ai.run(MODEL, account_id=ACCOUNT, prompt="Hi", max_tokens=5)
    assert completed["response"] == "Hello"


async def test_run_asynchronously(async_client: cloudflare.AsyncCloudflare) -> None:
    answer: Any = await async_client.ai.run(MODEL, account_id=ACCOUNT, messages=MESSAGES)
    assert answer["response"] == "Hello, world"


def test_embeddings(client: cloudflare.Cloudflare) -> None:
    answer: Any = client.ai.run(BGE, account_id=ACCOUNT, text=["one", "two"])
    assert answer["shape"] == [2, DIMENSIONS]


def test_a_stream_through_the_streaming_response(client: cloudflare.Cloudflare) -> None:
    run = client.ai.with_streaming_response.run
    with run(MODEL, account_id=ACCOUNT, messages=MESSAGES, stream=True) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    frames = [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(frame["response"] for frame in frames) == "Hello, world"


def test_the_catalogue_ends(client: cloudflare.Cloudflare) -> None:
    models: Any = list(client.ai.models.list(account_id=ACCOUNT))
    assert [model["name"] for model in models] == [MODEL, BGE]
    paged: Any = list(client.ai.models.list(account_id=ACCOUNT, per_page=1, hide_experimental=True, source=1))
    assert [model["name"] for model in paged] == [MODEL, BGE]
    found: Any = list(client.ai.models.list(account_id=ACCOUNT, task="Text Generation", search="llama"))
    assert len(found) == 1
    authors: Any = list(client.ai.authors.list(account_id=ACCOUNT))
    assert [author["name"] for author in authors] == ["baai", "meta"]
    tasks: Any = list(client.ai.tasks.list(account_id=ACCOUNT))
    assert {task["name"] for task in tasks} == {"Text Generation", "Text Embeddings"}


async def test_the_catalogue_ends_asynchronously(async_client: cloudflare.AsyncCloudflare) -> None:
    names = [model["name"] async for model in async_client.ai.models.list(account_id=ACCOUNT, per_page=1)]  # type: ignore[index]
    assert names == [MODEL, BGE]


def test_the_schema(client: cloudflare.Cloudflare) -> None:
    schema: Any = client.ai.models.schema.get(account_id=ACCOUNT, model=MODEL)
    assert [branch["title"] for branch in schema.to_dict()["input"]["oneOf"]] == ["Prompt", "Messages"]


def test_errors(client: cloudflare.Cloudflare) -> None:
    with pytest.raises(cloudflare.BadRequestError) as unknown:
        client.ai.run("@cf/meta/nothing", account_id=ACCOUNT, prompt="Hi")
    assert unknown.value.errors[0].code == 5007
    with pytest.raises(cloudflare.BadRequestError) as wrong:
        client.ai.run(MODEL, account_id=ACCOUNT, prompt="Hi", temperature=9)
    assert wrong.value.errors[0].code == 5006
    assert "'/temperature' must be <= 5" in str(wrong.value.errors[0].message)


def test_a_busy_server_is_tried_again_and_then_given_up() -> None:
    generator = MockGenerator(Metrics(), Script(KINDS))
    services = Services(generator=generator, model_card=mock_model_card(), engine=generator)
    with live(create_app(services, ServerConfig())) as base:
        options: Any = {"base_url": base + "/client/v4", "api_token": "any", "max_retries": 0}
        with cloudflare.Cloudflare(**options) as client:
            header = {"x-tampu-mock": "error=3040"}
            with pytest.raises(cloudflare.RateLimitError) as busy:
                client.ai.run(MODEL, account_id=ACCOUNT, prompt="Hi", extra_headers=header)
    assert busy.value.errors[0].code == 3040


def test_every_form_of_credentials_is_asked_for_once_tokens_exist(tmp_path: Any) -> None:
    database = open_database(tmp_path)
    store = TokenStore(database)
    token, _ = store.create_token(ACCOUNT, ["ai:read"])
    tokens = TokenCache(store)
    server = Server()
    with live(create_app(replace(server.services, tokens=tokens), ServerConfig())) as base:
        forms: Any = (
            {"api_token": token},
            {"api_key": token, "api_email": "me@example.org"},
            {"user_service_key": token},
        )
        for form in forms:
            with cloudflare.Cloudflare(base_url=base + "/client/v4", **form) as client:
                answer: Any = client.ai.run(MODEL, account_id=ACCOUNT, prompt="Hi")
                assert answer["response"] == "Hello, world"
        for wrong, account in (("wrong", ACCOUNT), (token, "f" * 32)):
            client = cloudflare.Cloudflare(base_url=base + "/client/v4", api_token=wrong)
            with client, pytest.raises(cloudflare.AuthenticationError) as refused:
                client.ai.run(MODEL, account_id=account, prompt="Hi")
            assert refused.value.errors[0].code == 10000
    server.close()
    tokens.close()
    database.close()
