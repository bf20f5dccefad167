"""The catalogue: items, filters, paging that ends, schemas; and the models lists of the OpenAI routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from fake_embedder import FakeEmbedder
from scripted_server import ACCOUNT, MODEL, Server
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.api.run_schema import INPUT_SCHEMA, OUTPUT_SCHEMA

BASE = f"/client/v4/accounts/{ACCOUNT}/ai"
BGE = "@cf/baai/bge-small-en-v1.5"


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A server with both kinds of models."""
    services = replace(server.services, embeddings=FakeEmbedder())
    transport = httpx.ASGITransport(create_app(services, ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made:
        yield made


async def get(http: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    reply = await http.get(BASE + path, params=query)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    assert body["success"] is True
    return body


async def test_an_item_says_what_really_answers(http: httpx.AsyncClient) -> None:
    body = await get(http, "/models/search")
    assert body["result_info"] == {"page": 1, "per_page": 20, "count": 2, "total_count": 2, "total_pages": 1}
    chat, embedding = body["result"]
    assert chat["id"] == "872d9af1-5ff8-4e84-aed1-ab3caf909436"
    assert (chat["name"], chat["source"], chat["tags"]) == (MODEL, 1, [])
    assert chat["task"]["id"] == "c329a1f9-323d-4e91-b2aa-582dd4188d34"
    properties = {each["property_id"]: each["value"] for each in chat["properties"]}
    assert properties["tampu_weights"] == "scripted"
    assert properties["tampu_stand_in"] == "true"
    assert properties["context_window"] == "4096"
    assert "terms" in properties
    assert all(isinstance(value, str) for value in properties.values())
    assert "scripted" in chat["description"]
    assert embedding["name"] == BGE
    assert embedding["task"]["name"] == "Text Embeddings"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"search": "LLAMA-3.1"}, [MODEL]),
        ({"search": "nothing like it"}, []),
        ({"task": "Text Generation"}, [MODEL]),
        ({"task": "text embeddings"}, [BGE]),
        ({"task": "c329a1f9-323d-4e91-b2aa-582dd4188d34"}, [MODEL]),
        ({"author": "meta"}, [MODEL]),
        ({"author": "baai"}, [BGE]),
        ({"source": "1"}, [MODEL, BGE]),
        ({"source": "1.0"}, [MODEL, BGE]),
        ({"source": "2"}, []),
        ({"hide_experimental": "true", "include_deprecated": "true", "unknown": "x"}, [MODEL, BGE]),
        ({"per_page": "1"}, [MODEL]),
        ({"per_page": "1", "page": "2"}, [BGE]),
        ({"per_page": "1", "page": "3"}, []),
        ({"per_page": "1000", "page": "2147483647"}, []),
    ],
)
async def test_filters_and_pages(http: httpx.AsyncClient, query: dict[str, str], names: list[str]) -> None:
    body = await get(http, "/models/search", **query)
    assert [item["name"] for item in body["result"]] == names
    assert body["result_info"]["count"] == len(names)
    reply = await http.get("/ai-api/models/search", params=query)
    assert [item["name"] for item in reply.json()["result"]] == names


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"page": "0"}, "page"),
        ({"page": "-1"}, "page"),
        ({"page": "9" * 30}, "page"),
        ({"per_page": "x"}, "per_page"),
        ({"per_page": "1001"}, "per_page"),
        ({"source": "a"}, "source"),
        ({"format": "openrouter"}, "format"),
    ],
)
async def test_a_query_that_means_nothing_is_refused(
    http: httpx.AsyncClient, query: dict[str, str], param: str
) -> None:
    reply = await http.get(BASE + "/models/search", params=query)
    assert reply.status_code == 400
    assert f"'{param}'" in reply.json()["errors"][0]["message"]


async def test_schemas(http: httpx.AsyncClient) -> None:
    page = await get(http, "/models/schema", model=MODEL)
    assert page["result"] == {"input": INPUT_SCHEMA, "output": OUTPUT_SCHEMA}
    embedding = await get(http, "/models/schema", model=BGE)
    assert embedding["result"]["input"]["required"] == ["text"]
    unknown = await http.get(BASE + "/models/schema", params={"model": "gpt"})
    assert (unknown.status_code, unknown.json()["errors"][0]["code"]) == (400, 5007)
    missing = await http.get(BASE + "/models/schema")
    assert missing.status_code == 400


async def test_authors_and_tasks(http: httpx.AsyncClient) -> None:
    authors = await get(http, "/authors/search")
    assert [author["name"] for author in authors["result"]] == ["baai", "meta"]
    tasks = await get(http, "/tasks/search", search="gen")
    assert [task["name"] for task in tasks["result"]] == ["Text Generation"]
    assert (await get(http, "/tasks/search", page=2))["result"] == []


@pytest.mark.parametrize("base", ["/v1", BASE + "/v1"])
async def test_openais_models_list(http: httpx.AsyncClient, base: str) -> None:
    listed = (await http.get(base + "/models")).json()
    assert listed["object"] == "list"
    assert [item["id"] for item in listed["data"]] == [MODEL, BGE]
    assert listed["data"][0]["tampu"]["weights"] == "scripted"
    for item in listed["data"]:
        assert (await http.get(f"{base}/models/{item['id']}")).json() == item
        assert (await http.get(f"{base}/models/{item['id'].replace('/', '%2F')}")).json() == item
    unknown = await http.get(base + "/models/gpt-4o")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"


async def test_strict_mode_has_no_models_list_where_the_hosted_service_has_none(strict: httpx.AsyncClient) -> None:
    reply = await strict.get(BASE + "/v1/models")
    assert reply.status_code == 405
    assert reply.json()["errors"] == [{"message": "GET not supported for requested URI.", "code": 7001}]
    assert (await strict.get("/v1/models")).status_code == 200
    malformed = await strict.get("/client/v4/accounts/acme/ai/models/search")
    assert (malformed.status_code, malformed.json()["errors"][0]["code"]) == (404, 7003)
