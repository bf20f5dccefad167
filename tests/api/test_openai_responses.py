"""The Responses route: what goes into the conversation, the object that comes out, the order of a stream's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from scripted_server import ACCOUNT, MODEL, Server, prompt_text
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.api.errors import KINDS
from tampu.serving.metrics import Metrics
from tampu.serving.mock import MockGenerator, mock_model_card
from tampu.serving.mock_script import Script
from tampu.serving.services import Services

PATH = "/v1/responses"
TOOL = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": {"b": value}}
    return value


def body(**members: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "Hi", **members}


@pytest.fixture
async def mock() -> AsyncIterator[httpx.AsyncClient]:
    """A server whose model calls the tool that it must."""
    generator = MockGenerator(Metrics(), Script(KINDS))
    services = Services(generator=generator, model_card=mock_model_card(), engine=generator)
    transport = httpx.ASGITransport(create_app(services, ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made:
        yield made


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; checks names and numbers."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("path", [PATH, f"/client/v4/accounts/{ACCOUNT}/ai/v1/responses"])
async def test_an_answer_is_one_message(client: httpx.AsyncClient, path: str) -> None:
    answer = (await client.post(path, json=body(metadata={"a": "b"}, temperature=0))).json()
    assert answer["object"] == "response"
    assert answer["id"].startswith("resp_")
    assert (answer["status"], answer["error"], answer["incomplete_details"]) == ("completed", None, None)
    assert (answer["store"], answer["previous_response_id"], answer["model"]) == (False, None, MODEL)
    assert (answer["metadata"], answer["temperature"], answer["tool_choice"]) == ({"a": "b"}, 0.0, "auto")
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello, world", "annotations": [], "logprobs": []}]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


async def test_a_stream_tells_the_same_in_order(client: httpx.AsyncClient) -> None:
    reply = await client.post(PATH, json=body(stream=True))
    assert reply.headers["content-type"] == "text/event-stream"
    events = events_of(reply.text)
    names = [event["type"].removeprefix("response.") for event in events]
    num_deltas = names.count("output_text.delta")
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * num_deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert num_deltas > 1
    assert "".join(event["delta"] for event in events if "delta" in event) == "Hello, world"
    final = events[-1]["response"]
    plain = (await client.post(PATH, json=body())).json()
    assert final["output"][0]["content"] == plain["output"][0]["content"]
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"
    item_ids = {event["item_id"] for event in events if "item_id" in event}
    assert item_ids == {final["output"][0]["id"]}


async def test_a_cut_answer_is_incomplete(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PATH, json=body(max_output_tokens=3))).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    events = events_of((await client.post(PATH, json=body(max_output_tokens=3, stream=True))).text)
    assert events[-1]["type"] == "response.incomplete"


async def test_instructions_and_items_become_the_conversation(server: Server, client: httpx.AsyncClient) -> None:
    items = [
        {"role": "user", "content": "First"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Second"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Third"}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Fourth"},
    ]
    reply = await client.post(PATH, json=body(input=items, instructions="Be kind."))
    assert reply.status_code == 200, reply.text
    prompt = prompt_text(server.requests[0])
    positions = [prompt.index(part) for part in ("Be kind.", "First", "Second", "Third", "add", "Fourth")]
    assert positions == sorted(positions)


async def test_a_tool_call_is_an_item(mock: httpx.AsyncClient) -> None:
    members = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "add"}}
    answer = (await mock.post(PATH, json=body(**members))).json()
    (item,) = answer["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "add", "completed")
    assert item["call_id"]
    assert set(orjson.loads(item["arguments"])) == {"a"}
    events = events_of((await mock.post(PATH, json=body(**members, stream=True))).text)
    names = [event["type"].removeprefix("response.") for event in events]
    assert list(dict.fromkeys(names)) == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("arguments.delta")]
    assert len(deltas) > 1
    assert "".join(deltas) == events[-3]["arguments"] == item["arguments"]
    assert events[2]["item"]["arguments"] == ""


async def test_logprobs_when_included(client: httpx.AsyncClient) -> None:
    members = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = (await client.post(PATH, json=body(**members))).json()
    tokens = answer["output"][0]["content"][0]["logprobs"]
    assert "".join(token["token"] for token in tokens) == "Hello, world"
    assert len(tokens[0]["top_logprobs"]) == 1


async def test_an_error_in_the_stream_is_its_last_event(server: Server, client: httpx.AsyncClient) -> None:
    breaking = asyncio.create_task(server.break_while_talking())
    text = (await client.post(PATH, json=body(stream=True, max_output_tokens=2000))).text
    await breaking
    events = events_of(text)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert "secret" not in text


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": 5}}}, "text/format/schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text/format/schema"),
        ({"input": [5]}, "input/0"),
        ({"input": [{"content": "no role"}]}, "input/0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input/0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input/0/content/0"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"include": ["file_search_call.results"]}, "include/0"),
        ({"text": {"format": {"type": "xml"}}}, "text/format/type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text/format/schema"),
        ({"tools": [{"type": "function", "name": f"f{i}"} for i in range(1025)]}, "tools"),
        ({"metadata": nested(150)}, "metadata"),
        ({"tools": [{"type": "function", "name": "f", "parameters": nested(150)}]}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": nested(150)}}}, "text"),
        ({"text": {"verbosity": "high"}}, "text/verbosity"),
        ({"tools": [{"type": "web_search"}]}, "tools/0/type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"model": None}, "model"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    server: Server, client: httpx.AsyncClient, members: dict[str, Any], param: str
) -> None:
    reply = await client.post(PATH, json=body(**members))
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert server.requests == []
