"""Tool calls in OpenAI's streams, over the scripted runner, which obeys masks: in pieces where they are certain."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import orjson
import pytest

from scripted_server import MODEL, RUN_PATH, Server, frames_of

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
FUNCTION = {"name": "weather", "description": "The weather", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
ODD = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
ODD_TOOL = {"type": "function", "function": {"name": "odd", "parameters": ODD}}
ARGUMENTS = '{"city":"Lima (é🦙)", "days": 2}'
WRITTEN = '{"name": "weather", "arguments": ' + ARGUMENTS + "}"
CALL = f"<tool_call>\n{WRITTEN}\n</tool_call>"
NOW = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
ROOM = {"max_tokens": 1000, "temperature": 0}


def body(**members: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [USER], "tools": [TOOL, CLOCK], **ROOM, **members}


async def plain(client: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    response = await client.post(PATH, json=body(**members))
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def streamed(client: httpx.AsyncClient, **members: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """The choice that a stream adds up to, as OpenAI's clients add it up, and the fragments of each call."""
    frames = frames_of((await client.post(PATH, json=body(stream=True, **members))).text)
    calls: list[dict[str, Any]] = []
    fragments: list[list[str]] = []
    text = ""
    for frame in frames:
        delta = frame["choices"][0]["delta"]
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call.keys() == {"index", "id", "type", "function"}
                assert call["function"].keys() == {"name", "arguments"}
                assert call["function"]["arguments"] == ""
                calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
                fragments.append([])
            else:
                assert call.keys() == {"index", "function"}
                assert call["index"] == len(calls) - 1
                assert call["function"].keys() == {"arguments"}
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
                fragments[-1].append(call["function"]["arguments"])
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return {"index": 0, "message": message, "finish_reason": frames[-1]["choices"][0]["finish_reason"]}, fragments


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    for call in choice["message"].get("tool_calls", ()):
        assert call.pop("id")
    return choice


@pytest.mark.parametrize(
    ("said", "members"),
    [
        (CALL, {"tool_choice": "required"}),
        (CALL, {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        (f"{CALL}\n{NOW}", {"tool_choice": "required"}),
        (CALL, {}),
        (WRITTEN, {}),
        (f"Let me look.\n{CALL}\n{NOW}", {}),
        (f"Let me look.\n{CALL}\n{NOW}", {"parallel_tool_calls": False}),
        (f"[{WRITTEN}]", {}),
    ],
)
async def test_calls_that_are_certain_come_in_fragments_that_join_to_the_plain_answer(
    server: Server, client: httpx.AsyncClient, said: str, members: dict[str, Any]
) -> None:
    server.say = lambda request: said
    whole = await plain(client, **members)
    choice, fragments = await streamed(client, **members)
    assert without_ids(choice) == without_ids(whole)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGUMENTS}
    assert len(fragments[0]) > len(ARGUMENTS) // 2  # about one for each token, here a byte
    assert "".join(fragments[0]) == ARGUMENTS


@pytest.mark.parametrize(
    ("said", "members"),
    [
        (CALL, {"stop": ["never"]}),
        (CALL, {"response_format": {"type": "json_object"}}),
        (CALL, {"tools": [TOOL, ODD_TOOL]}),
        ('{"arguments": {"city": "Lima", "days": 2}, "name": "weather"}', {}),
        (WRITTEN, {"max_tokens": len(WRITTEN.encode()) - 10, "tools": [TOOL, ODD_TOOL]}),
        ('{"function": ' + WRITTEN + "}", {}),
        ('{"name": "weather", "city": "Lima"}', {"tools": [TOOL, ODD_TOOL]}),
    ],
)
async def test_what_is_not_certain_comes_whole_or_is_text(
    server: Server, client: httpx.AsyncClient, said: str, members: dict[str, Any]
) -> None:
    server.say = lambda request: said
    whole = await plain(client, **members)
    choice, fragments = await streamed(client, **members)
    assert without_ids(choice) == without_ids(whole)
    assert all(len(each) == 1 for each in fragments)


async def test_a_fragment_comes_before_the_call_is_complete(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: f"So: {WRITTEN}"
    text = (await client.post(PATH, json=body(stream=True))).text
    first, second, third = [f for f in frames_of(text) if "tool_calls" in f["choices"][0]["delta"]][:3]
    assert first["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "weather"
    assert second["choices"][0]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": "{"}}]
    assert third["choices"][0]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": '"'}}]


async def test_the_native_stream_keeps_one_frame_for_each_call(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: f"{CALL}\n{NOW}"
    native = {"messages": [USER], "tools": [TOOL, CLOCK], "stream": True, **ROOM}
    frames = frames_of((await client.post(RUN_PATH, json=native)).text)
    calls = [frame["tool_calls"] for frame in frames if "tool_calls" in frame]
    expected = {"name": "weather", "arguments": {"city": "Lima (é🦙)", "days": 2}}
    assert calls == [[{"index": 0, **expected}], [{"index": 1, "name": "clock", "arguments": {}}]]


# --- max_tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize(("max_tokens", "fits"), [(1, False), (20, False), (60, False), (70, True), (75, True)])
async def test_a_demanded_call_that_hardly_fits_is_delivered_the_same_way_by_both_and_says_length(
    server: Server, client: httpx.AsyncClient, choice: Any, max_tokens: int, fits: bool
) -> None:
    server.say = lambda request: CALL
    members = {"tool_choice": choice, "max_tokens": max_tokens, "tools": [TOOL]}
    whole = await plain(client, **members)
    answer, fragments = await streamed(client, **members)
    assert without_ids(answer) == without_ids(whole)
    assert answer["finish_reason"] == "length"
    if fits:  # but not with its closing tag, so that it was not certain: it comes whole
        (call,) = answer["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
        assert [len(each) for each in fragments] == [1]
    else:
        assert len(answer["message"]["content"]) == max_tokens
        assert answer["message"]["content"][:20] == CALL[:20][:max_tokens]
        assert fragments == []


@pytest.mark.parametrize("max_tokens", [80, 81, 85, 100, 130, 200])
@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_a_call_that_rambles_is_closed_in_time(
    server: Server, client: httpx.AsyncClient, choice: str, max_tokens: int
) -> None:
    server.say = lambda request: '<tool_call>\n{"name": "weather", "arguments": {"city": "L' + "a" * 1000
    members = {"tool_choice": choice, "max_tokens": max_tokens, "tools": [TOOL]}
    whole = await plain(client, **members)
    answer, fragments = await streamed(client, **members)
    assert without_ids(answer) == without_ids(whole)
    assert answer["finish_reason"] == "length"
    (call,) = answer["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
    assert answer["message"]["content"] is None
    assert len(fragments[0]) > 3


async def test_an_automatic_call_that_does_not_fit_is_cut_text(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: "Well, let me see what the weather is like. " + WRITTEN
    members = {"max_tokens": 75, "tools": [TOOL]}
    whole = await plain(client, **members)
    answer, fragments = await streamed(client, **members)
    assert answer == whole
    assert (answer["finish_reason"], fragments) == ("length", [])
    assert answer["message"]["content"] == ("Well, let me see what the weather is like. " + WRITTEN)[:75]


@pytest.mark.parametrize("tools", [[], [TOOL]])
async def test_json_that_is_cut_says_so_beside_tools_as_without(
    server: Server, client: httpx.AsyncClient, tools: list[Any]
) -> None:
    server.say = lambda request: '{"free": "' + "x" * 500
    members = {"response_format": {"type": "json_object"}, "tools": tools, "max_tokens": 20}
    for choice in (await plain(client, **members), (await streamed(client, **members))[0]):
        assert (choice["message"]["content"], choice["finish_reason"]) == ('{"free": "' + "x" * 10, "length")
    native = {"messages": [USER], **members}
    response = await client.post(RUN_PATH, json=native)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5024)
    *frames, last = frames_of((await client.post(RUN_PATH, json={**native, "stream": True})).text)
    assert "".join(frame["response"] for frame in frames) == '{"free": "' + "x" * 10
    assert last["finish_reason"] == "length"


# --- schemas that cannot be enforced ------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "odd"}}])
@pytest.mark.parametrize("path", [PATH, "/v1/responses"])
async def test_a_demand_that_cannot_be_enforced_is_refused_by_path(
    client: httpx.AsyncClient, choice: Any, path: str
) -> None:
    response = await client.post(path, json=body(tools=[TOOL, ODD_TOOL], tool_choice=choice, input="hi") | drop(path))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "tools/1/function/parameters"
    pointer = "/tools/1/function/parameters/properties/a"
    assert f"tool 'odd': keyword 'uniqueItems' at {pointer}: cannot be enforced" in error["message"]


@pytest.mark.parametrize(
    ("members", "place"),
    [
        (
            {"tools": [TOOL, ODD_TOOL], "tool_choice": {"type": "function", "function": {"name": "odd"}}},
            "tools/1/function",
        ),
        (
            {
                "tools": [TOOL, ODD_TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "name": "odd"}]},
                },
            },
            "tools/1/function",
        ),
        ({"functions": [TOOL["function"], ODD_TOOL["function"]], "function_call": {"name": "odd"}}, "functions/1"),
    ],
)
async def test_the_place_is_where_the_client_wrote_the_tool(
    client: httpx.AsyncClient, members: dict[str, Any], place: str
) -> None:
    error = (await client.post(PATH, json=body(**{"tools": None, **members}))).json()["error"]
    assert error["param"] == f"{place}/parameters"
    assert f"tool 'odd': keyword 'uniqueItems' at /{place}/parameters/properties/a: " in error["message"]


def drop(path: str) -> dict[str, Any]:
    """Chat's members are null on the other route, and the other way round."""
    return {"input": None} if path == PATH else {"messages": None, "max_tokens": None}


# --- the Responses format -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [f"First this.\n{CALL}\n{NOW}", WRITTEN])
async def test_responses_stream_arguments_and_close_each_call_when_it_is_complete(
    server: Server, client: httpx.AsyncClient, said: str
) -> None:
    server.say = lambda request: f"{said} And text."
    members = {"model": MODEL, "input": "hi", "tools": [TOOL, CLOCK], "max_output_tokens": 1000}
    whole = (await client.post("/v1/responses", json=members)).json()
    blocks = (await client.post("/v1/responses", json={**members, "stream": True})).text.strip().split("\n\n")
    events = [orjson.loads(block.split("\ndata: ")[1]) for block in blocks]
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [
        (item["name"], item["arguments"]) for item in calls
    ]
    for event in done:
        place = (event["item_id"], event["output_index"])
        deltas = [each for each in events if (each.get("item_id"), each.get("output_index")) == place][:-1]
        assert "".join(delta["delta"] for delta in deltas) == event["arguments"]
    assert done[0]["arguments"] == ARGUMENTS
    text_after = [e for e in events if e["type"] == "response.output_text.delta" and e["output_index"] > len(calls) - 1]
    assert text_after[0]["sequence_number"] > done[-1]["sequence_number"]
    kinds = ["message", *["function_call"] * len(calls), "message"] if said.startswith("First") else [
        "function_call", "message"]  # fmt: skip
    assert [item["type"] for item in events[-1]["response"]["output"]] == kinds
    assert [item["type"] for item in whole["output"]] == kinds
