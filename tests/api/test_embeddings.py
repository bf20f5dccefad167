"""Embeddings on both protocols, over a fake model: shapes, formats, refusals by name."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from fake_embedder import DIMENSIONS, FakeEmbedder, vector
from scripted_server import ACCOUNT, MODEL, Server
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.api.errors import KINDS
from tampu.serving.mock_embedder import MockEmbedder

BGE = "@cf/baai/bge-small-en-v1.5"
PATH = f"/client/v4/accounts/{ACCOUNT}/ai/v1/embeddings"
RUN = f"/client/v4/accounts/{ACCOUNT}/ai/run/"


def client_of(server: Server, **settings: Any) -> httpx.AsyncClient:
    services = replace(server.services, embeddings=FakeEmbedder())
    transport = httpx.ASGITransport(create_app(services, ServerConfig(**settings)))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers={"authorization": "Bearer x"})


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A server with an embedding model."""
    async with client_of(server) as made:
        yield made


def numbers(text: str) -> list[float]:
    return list(struct.unpack(f"<{DIMENSIONS}f", vector(text)))


@pytest.mark.parametrize("path", [PATH, "/v1/embeddings"])
async def test_openais_list(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.post(path, json={"model": BGE, "input": ["one", "two three"]})
    assert reply.status_code == 200, reply.text
    assert reply.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": numbers("one")},
            {"object": "embedding", "index": 1, "embedding": numbers("two three")},
        ],
        "model": BGE,
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    single = await http.post(path, json={"model": BGE, "input": "one", "encoding_format": "base64"})
    (item,) = single.json()["data"]
    assert base64.b64decode(item["embedding"]) == vector("one")


async def test_the_native_shape_in_the_envelope(http: httpx.AsyncClient) -> None:
    for text in ("one", ["one"]):
        reply = await http.post(RUN + BGE, json={"text": text})
        result = reply.json()["result"]
        assert reply.json()["success"] is True
        assert (result["shape"], result["data"], result["pooling"]) == ([1, DIMENSIONS], [numbers("one")], "mean")
    encoded = await http.post(RUN + BGE.replace("/", "%2F"), json={"text": ["one", "two"], "pooling": "mean"})
    assert encoded.json()["result"]["shape"] == [2, DIMENSIONS]


async def test_the_worker_binding_gets_the_bare_result(http: httpx.AsyncClient) -> None:
    headers = {"cf-consn-model-id": BGE}
    reply = await http.post("/run?version=3", json={"inputs": {"text": "one"}, "options": {}}, headers=headers)
    assert reply.json()["shape"] == [1, DIMENSIONS]


async def test_the_family_is_accepted_in_default_mode_only(server: Server, http: httpx.AsyncClient) -> None:
    large = "@cf/baai/bge-large-en-v1.5"
    assert (await http.post(RUN + large, json={"text": "one"})).status_code == 200
    assert (await http.post(PATH, json={"model": large, "input": "x"})).json()["model"] == large
    async with client_of(server, is_strict=True) as strict:
        assert (await strict.post(RUN + large, json={"text": "one"})).json()["errors"][0]["code"] == 5007
        assert (await strict.post(RUN + BGE, json={"text": "one"})).status_code == 200


async def test_dimensions(server: Server, http: httpx.AsyncClient) -> None:
    body = {"model": BGE, "input": "one"}
    same = await http.post(PATH, json={**body, "dimensions": DIMENSIONS})
    assert "x-tampu-ignored" not in same.headers
    other = await http.post(PATH, json={**body, "dimensions": 768})
    assert other.status_code == 200
    assert other.headers["x-tampu-ignored"] == "dimensions"
    assert len(other.json()["data"][0]["embedding"]) == DIMENSIONS
    async with client_of(server, is_strict=True) as strict:
        refused = await strict.post(PATH, json={**body, "dimensions": 768})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input/1"),
        ({"input": [1, 2]}, "input/0"),
        ({"input": [[1, 2]]}, "input/0"),
        ({"input": {}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": None}, "model"),
        ({"model": MODEL}, "model"),
        ({"model": "text-embedding-3-small"}, "model"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, members: dict[str, Any], param: str
) -> None:
    reply = await http.post(PATH, json={"model": BGE, "input": "one", **members})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "payload", ["{}", '{"text":null}', '{"text":[]}', '{"text":5}', '{"text":[""]}', "[]", '"x"', "null"]
)
async def test_native_bodies_that_are_no_text_are_5006(http: httpx.AsyncClient, payload: str) -> None:
    reply = await http.post(RUN + BGE, content=payload)
    assert reply.status_code == 400
    assert reply.json()["errors"][0]["code"] == 5006


async def test_the_wrong_kind_of_model_is_told_apart(http: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    text_model = (await http.post(PATH, json={"model": MODEL, "input": "one"})).json()["error"]["message"]
    assert "generates text" in text_model
    assert BGE in text_model
    messages = [{"role": "user", "content": "Hi"}]
    chat = await http.post("/v1/chat/completions", json={"model": BGE, "messages": messages})
    assert chat.status_code == 400
    assert MODEL in chat.json()["error"]["message"]
    without = (await client.post(PATH, json={"model": MODEL, "input": "one"})).json()["error"]["message"]
    assert "no embedding model" in without


async def test_a_text_that_is_too_long_is_never_cut(http: httpx.AsyncClient) -> None:
    reply = await http.post(PATH, json={"model": BGE, "input": "word " * 600})
    assert reply.status_code == 413


async def test_the_mock_gives_equal_texts_equal_unit_vectors() -> None:
    embedder = MockEmbedder(KINDS)
    one, two, other = (await embedder.embed(["same", "same", ""])).vectors
    assert one == two != other
    for vector_bytes in (one, other):
        numbers_of = struct.unpack(f"<{embedder.card.dimensions}f", vector_bytes)
        assert sum(number * number for number in numbers_of) == pytest.approx(1.0, abs=1e-5)
