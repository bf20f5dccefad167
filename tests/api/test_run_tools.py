"""Tools, JSON mode, functions and images through the run endpoint, over the scripted runner, which obeys masks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pytest

from scripted_server import ACCOUNT, MODEL, RUN_PATH, Server, frames_of, prompt_text
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.core.chat import ToolSpec
from tampu.core.request import Request
from tampu.sandbox.sandbox import Sandbox
from tampu.serving.function_rounds import FunctionRounds

USER = {"role": "user", "content": "hi"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
FLAT = {"name": "weather", "description": "The weather", "parameters": PARAMETERS}
NESTED = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {
    "type": "object", "properties": {}}}}  # fmt: skip
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima", "days": 2}}\n</tool_call>'


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(RUN_PATH, json={"messages": [USER], **body})


async def test_calls_come_flat_with_parsed_arguments(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: f"Let me look.\n{CALL}"
    result = (await ask(client, tools=[FLAT, NESTED])).json()["result"]
    assert result["tool_calls"] == [{"name": "weather", "arguments": {"city": "Lima", "days": 2}}]
    assert result["response"].strip() == "Let me look."
    assert result["finish_reason"] == "tool_calls"
    assert "weather" in prompt_text(server.requests[0])
    assert "clock" in prompt_text(server.requests[0])


async def test_an_integer_beyond_64_bits_is_a_number_like_any_other(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: '<tool_call>\n{"name": "f", "arguments": {"x": 123456789012345678901234567890}}'
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}
    result = (await ask(client, tools=[tool])).json()["result"]
    assert result["tool_calls"] == [{"name": "f", "arguments": {"x": 123456789012345678901234567890.0}}]


async def test_without_a_call_the_list_is_there_and_empty(server: Server, client: httpx.AsyncClient) -> None:
    result = (await ask(client, tools=[FLAT])).json()["result"]
    assert (result["response"], result["tool_calls"], result["finish_reason"]) == ("Hello, world", [], "stop")


async def test_a_stream_has_one_complete_frame_for_each_call(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: f"Look: {CALL}\n{CALL}"
    *frames, last = frames_of((await ask(client, tools=[FLAT], stream=True)).text)
    calls = [frame for frame in frames if "tool_calls" in frame]
    expected = {"name": "weather", "arguments": {"city": "Lima", "days": 2}}
    assert calls == [{"response": "", "tool_calls": [{"index": index, **expected}]} for index in range(2)]
    assert all(type(frame["response"]) is str for frame in frames)
    assert last["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", "any", {"type": "function", "function": {"name": "weather"}},
                                    {"type": "function", "name": "weather"}])  # fmt: skip
async def test_a_demanded_call_is_enforced_whatever_the_model_wants(
    server: Server, client: httpx.AsyncClient, choice: Any
) -> None:
    server.say = lambda request: "I would rather not." * 20
    tool = {**FLAT, "parameters": {**PARAMETERS, "properties": {"city": {"enum": ["Lima"]}, "days": {"const": 3}}}}
    result = (await ask(client, tools=[tool], tool_choice=choice)).json()["result"]
    assert result["tool_calls"][0] == {"name": "weather", "arguments": {"city": "Lima", "days": 3}}
    assert result["response"] == ""


@pytest.mark.parametrize("max_tokens", [100, 101, 130, 200])
async def test_a_demanded_call_that_rambles_is_closed_in_time_on_every_way_out(
    server: Server, client: httpx.AsyncClient, max_tokens: int
) -> None:
    server.say = lambda request: '<tool_call>\n{"name": "weather", "arguments": {"city": "L' + "a" * 1000
    limits = {"tool_choice": "required", "max_tokens": max_tokens, "temperature": 0}
    plain = (await ask(client, tools=[FLAT], **limits)).json()["result"]
    (call,) = plain["tool_calls"]
    jsonschema.validate(call["arguments"], PARAMETERS)
    assert (plain["response"], plain["finish_reason"]) == ("", "length")
    assert plain["usage"]["completion_tokens"] <= max_tokens
    *frames, last = frames_of((await ask(client, tools=[FLAT], stream=True, **limits)).text)
    assert [frame["tool_calls"] for frame in frames if "tool_calls" in frame] == [[{"index": 0, **call}]]
    assert "".join(frame["response"] for frame in frames) == ""
    assert last["finish_reason"] == "length"
    body = {"model": MODEL, "messages": [USER], "tools": [{"type": "function", "function": FLAT}], **limits}
    path = f"/client/v4/accounts/{ACCOUNT}/ai/v1/chat/completions"
    choice = (await client.post(path, json=body)).json()["choices"][0]
    (called,) = choice["message"]["tool_calls"]
    assert (json.loads(called["function"]["arguments"]), choice["finish_reason"]) == (call["arguments"], "length")


async def test_a_demanded_call_with_room_to_spare_says_tool_calls(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: CALL
    result = (await ask(client, tools=[FLAT], tool_choice="required", max_tokens=1000)).json()["result"]
    assert (result["tool_calls"][0]["arguments"], result["finish_reason"]) == (
        {"city": "Lima", "days": 2},
        "tool_calls",
    )


async def test_no_room_for_any_call_is_said(server: Server, client: httpx.AsyncClient) -> None:
    response = await ask(client, tools=[FLAT], tool_choice="required", max_tokens=20)
    assert response.status_code == 400
    assert "max_tokens" in response.text


async def test_choice_none_offers_nothing(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: CALL
    result = (await ask(client, tools=[FLAT], tool_choice="none")).json()["result"]
    assert (result["response"], result["tool_calls"], result["finish_reason"]) == (CALL, [], "stop")
    assert "weather" not in prompt_text(server.requests[0])


async def test_null_beside_calls_is_a_switch(server: Server) -> None:
    server.say = lambda request: CALL
    async with server.client(has_null_response_with_tool_calls=True) as client:
        result = (await ask(client, tools=[FLAT])).json()["result"]
    assert result["response"] is None


@pytest.mark.parametrize(
    "choice", ["sometimes", 5, {"type": "function"}, {"type": "function", "function": {"name": "unknown"}}]
)
async def test_a_choice_that_means_nothing_is_refused_by_name(client: httpx.AsyncClient, choice: Any) -> None:
    response = await ask(client, tools=[FLAT], tool_choice=choice)
    assert response.status_code == 400
    assert "tool_choice" in response.json()["errors"][0]["message"]


async def test_unusable_tools_are_left_out_with_a_note(client: httpx.AsyncClient) -> None:
    body = (await ask(client, tools=[5, FLAT, {"description": "nameless"}, FLAT])).json()
    notes = [note["message"] for note in body["messages"]]
    assert notes == ["'tools/0' has no name and was left out.", "'tools/2' has no name and was left out.",
                     "'tools/3' repeats the name 'weather' and was left out."]  # fmt: skip


async def test_functions_that_are_no_objects_are_left_out_with_a_note(client: httpx.AsyncClient) -> None:
    body = (await ask(client, functions=["x"])).json()
    assert [note["message"] for note in body["messages"]] == ["'functions/0' is not an object and was left out."]


@pytest.mark.parametrize("prompt", [{"prompt": "hi"}, {"messages": [USER], "raw": True}])
async def test_tools_beside_a_bare_prompt_are_noted_and_a_demand_refused(
    client: httpx.AsyncClient, prompt: dict[str, Any]
) -> None:
    noted = (await client.post(RUN_PATH, json={**prompt, "tools": [FLAT]})).json()
    assert noted["success"] is True
    assert [note["message"].split("'")[1] for note in noted["messages"]] == ["tools"]
    demanded = await client.post(RUN_PATH, json={**prompt, "tools": [FLAT], "tool_choice": "required"})
    assert demanded.status_code == 400
    assert "'tool_choice' demands a call" in demanded.text


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, "'guided_json' cannot be sent together"),
        ({"guided_json": 5}, "'guided_json' must be a JSON schema, not 5"),
        ({"parallel_tool_calls": "x"}, "'parallel_tool_calls' must be true or false, not \"x\""),
        ({"response_format": "json_object"}, "'response_format' must be an object"),
        ({"logit_bias": []}, "'logit_bias' must map token ids to numbers, not be []"),
        ({"max_tokens": 10**12}, "max_tokens is 1000000000000"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "'messages/0/tool_calls/0'"),
    ],
)
async def test_wrong_extras_are_named_with_their_value(
    client: httpx.AsyncClient, members: dict[str, Any], words: str
) -> None:
    response = await ask(client, **members)
    assert response.status_code in (400, 413)
    assert words in response.json()["errors"][0]["message"]


async def test_json_mode_that_a_stop_string_ended_says_so(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: '{"free": "x"}'
    response = await ask(client, response_format={"type": "json_object"}, stop=["x"])
    assert response.json()["errors"][0]["code"] == 5024
    assert "stop string 'x'" in response.json()["errors"][0]["message"]


async def test_every_history_shape_gives_the_same_prompt(server: Server, client: httpx.AsyncClient) -> None:
    arguments = {"city": "Lima", "days": 2}
    nested = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(arguments)}}
    as_text = json.dumps({"name": "weather", "parameters": arguments})
    result = {"role": "tool", "content": "sunny", "name": "weather"}
    by_id = {"role": "tool", "content": [{"type": "text", "text": "sunny"}], "tool_call_id": "c1"}
    turns = (
        [{"role": "assistant", "content": as_text}, result],
        [{"role": "assistant", "content": json.dumps({"name": "weather", "arguments": arguments})}, result],
        [{"role": "assistant", "content": "", "tool_calls": [nested]}, {**result, "tool_call_id": "c1"}],
        [{"role": "assistant", "content": None, "tool_calls": [nested]}, by_id],
        [{"role": "assistant", "tool_calls": [nested]}, by_id],
        [{"role": "assistant", "content": as_text, "tool_calls": [nested]}, result],
        [{"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": arguments}]}, result],
    )
    for turn in turns:
        response = await client.post(RUN_PATH, json={"messages": [USER, *turn], "tools": [FLAT]})
        assert response.status_code == 200, response.text
    assert len({request.prompt_token_ids for request in server.requests}) == 1
    assert "sunny" in prompt_text(server.requests[0])


SCHEMA = {"type": "object", "properties": {"a": {"const": 1}, "b": {"enum": ["x"]}}, "required": ["a", "b"],
          "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
        {"guided_json": SCHEMA},
    ],
)
async def test_json_mode_gives_a_parsed_value(server: Server, client: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    server.say = lambda request: "no JSON here"
    plain = (await ask(client, **extra)).json()["result"]
    assert plain["response"] == {"a": 1, "b": "x"}
    streamed = frames_of((await ask(client, **extra, stream=True)).text)
    assert json.loads("".join(frame["response"] for frame in streamed)) == {"a": 1, "b": "x"}


async def test_json_object_mode_and_a_bare_prompt(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: '{"free": [1, "two"]}'
    body = {"prompt": "hi", "response_format": {"type": "json_object"}}
    response = await client.post(RUN_PATH, json=body)
    assert response.json()["result"]["response"] == {"free": [1, "two"]}


async def test_json_mode_beside_tools_gives_either(server: Server, client: httpx.AsyncClient) -> None:
    extra = {"tools": [FLAT], "response_format": {"type": "json_schema", "json_schema": SCHEMA}}
    server.say = lambda request: '{"a": 1, "b": "x"}'
    assert (await ask(client, **extra)).json()["result"]["response"] == {"a": 1, "b": "x"}
    server.say = lambda request: CALL
    result = (await ask(client, **extra)).json()["result"]
    assert (result["response"], result["finish_reason"]) == ("", "tool_calls")


async def test_what_is_cut_off_says_so(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: '{"free": "' + "x" * 500
    json_mode = await ask(client, response_format={"type": "json_object"}, max_tokens=20)
    assert (json_mode.status_code, json_mode.json()["errors"][0]["code"]) == (400, 5024)
    assert json_mode.json()["errors"][0]["message"].startswith("AiError: JSON Mode couldn't be met. The answer was cut")
    forced = await ask(client, tools=[FLAT], tool_choice="required", max_tokens=20)
    assert (forced.status_code, forced.json()["errors"][0]["code"]) == (400, 8006)


async def test_schemas_we_cannot_honour_are_refused_by_keyword_and_path(client: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    response = await ask(client, response_format={"type": "json_schema", "json_schema": schema})
    assert response.status_code == 400
    message = response.json()["errors"][0]["message"]
    assert "uniqueItems" in message
    assert "/properties/a" in message
    odd_tool = {**FLAT, "parameters": schema}
    demanded = await ask(client, tools=[odd_tool], tool_choice="required")
    assert demanded.status_code == 400
    assert (await ask(client, tools=[odd_tool])).status_code == 200


COSTLY = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(?:.*a.{300})+$"}}, "required": ["x"]}
LETTERS = "".join(random.Random(1).choices("ab", k=1200))  # in which no state of the pattern comes twice


async def test_a_call_that_cannot_go_on_is_named(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: '<tool_call>\n{"name": "weather", "arguments": {"x": "' + LETTERS
    tools = [{**FLAT, "parameters": COSTLY}, NESTED]
    for choice, call in (("required", "the demanded call"), ("auto", "a call")):
        response = await ask(client, tools=tools, tool_choice=choice, max_tokens=2000)
        assert response.status_code == 400
        error = response.json()["errors"][0]
        assert error["code"] == 5006
        assert f"{call} of 'weather', 'clock' could not be continued: no token is allowed next" in error["message"]
        assert error["message"].endswith("simplify it.")
        assert "JSON Mode" not in error["message"]


async def test_json_that_cannot_go_on_is_an_error_of_json_mode(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: '{"x": "' + LETTERS
    json_mode = {"type": "json_schema", "json_schema": COSTLY}
    error = (await ask(client, response_format=json_mode, max_tokens=2000)).json()["errors"][0]
    assert error["code"] == 5024
    assert error["message"].startswith(
        "AiError: JSON Mode couldn't be met. The answer could not be continued: no token"
    )
    assert error["message"].endswith("simplify it.")


async def test_a_schema_error_counts_tools_that_were_left_out(client: httpx.AsyncClient) -> None:
    odd = {**FLAT, "name": "odd", "parameters": {"type": "object", "minProperties": "x"}}
    response = await ask(client, tools=["x", FLAT, odd], tool_choice="required")
    message = response.json()["errors"][0]["message"]
    assert "tool 'odd': keyword 'minProperties' at /tools/2/parameters: " in message


async def test_strict_mode_refuses_json_with_streaming(strict: httpx.AsyncClient) -> None:
    response = await ask(strict, response_format={"type": "json_object"}, stream=True)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5023)
    hosted = "AiError: JSON Schema mode is not supported with stream mode."
    assert response.json()["errors"][0]["message"] == hosted


async def test_an_image_is_refused_or_dropped_with_a_note(server: Server, client: httpx.AsyncClient) -> None:
    refused = await ask(client, image=[1, 2, 3])
    assert refused.status_code == 400
    assert "'image'" in refused.json()["errors"][0]["message"]
    async with server.client(is_image_ignored=True) as lenient:
        dropped = await ask(lenient, image="binary")
    assert dropped.status_code == 200
    assert "'image' was ignored" in dropped.json()["messages"][0]["message"]


class Adder:
    """A sandbox that adds."""

    async def describe(self, code: str, name: str = "") -> ToolSpec:
        return ToolSpec(name, "Adds.", {"type": "object"})

    async def call(self, code: str, arguments: Mapping[str, Any], name: str = "") -> str:
        return json.dumps(sum(arguments.values()))


async def test_functions_run_here_and_tools_come_back(server: Server) -> None:
    def say(request: Request) -> str:
        told = prompt_text(request)
        return "It is 5." if "<tool_response>" in told or "\n5" in told else (
            '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
        )  # fmt: skip

    server.say = say
    services = replace(server.services, generator=FunctionRounds(server.generator, Adder()))
    transport = httpx.ASGITransport(create_app(services, ServerConfig()))
    function = {"name": "add", "code": "/** Adds. */ ({a, b}) => a + b"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        result = (await ask(client, functions=[function])).json()["result"]
        streamed = frames_of((await ask(client, functions=[function], stream=True)).text)
    assert result["response"] == "It is 5."
    assert result["tool_calls"] == [{"name": "add", "arguments": {"a": 2, "b": 3}}]
    assert result["finish_reason"] == "stop"
    assert "".join(frame["response"] for frame in streamed) == "It is 5."
    assert [frame["tool_calls"] for frame in streamed if "tool_calls" in frame] == [result["tool_calls"]]
    assert streamed[-1]["tool_calls"]
    assert len([frame for frame in streamed if frame["response"]]) > 3  # as it comes


async def test_json_cut_after_a_function_ran_names_the_limit_of_the_round(server: Server) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
    server.say = lambda request: call if len(server.requests) == 1 else '{"free": "' + "x" * 500
    services = replace(server.services, generator=FunctionRounds(server.generator, Adder()))
    transport = httpx.ASGITransport(create_app(services, ServerConfig()))
    json_mode = {"response_format": {"type": "json_object"}, "max_tokens": 100}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await ask(client, functions=[{"name": "add", "code": "({a, b}) => a + b"}], **json_mode)
    assert len(server.requests) == 2
    error = response.json()["errors"][0]
    assert error["code"] == 5024
    assert error["message"].endswith("The answer was cut off after 100 tokens: raise max_tokens.")


async def test_a_function_runs_in_the_real_sandbox(server: Server) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
    server.say = lambda request: call if len(server.requests) == 1 else "done"
    sandbox = Sandbox()
    services = replace(server.services, generator=FunctionRounds(server.generator, sandbox))
    transport = httpx.ASGITransport(create_app(services, ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        result = (await ask(client, functions=[{"name": "add", "code": "async ({a, b}) => a + b"}])).json()["result"]
    sandbox.close()
    assert (result["response"], result["finish_reason"]) == ("done", "stop")
    assert "<tool_response>\n5\n</tool_response>" in prompt_text(server.requests[-1])


async def test_functions_are_refused_where_they_cannot_run(server: Server, client: httpx.AsyncClient) -> None:
    function = {"name": "add", "code": "() => 1"}
    cannot = await ask(client, functions=[function])
    async with server.client(enables_functions=False) as closed:
        may_not = await ask(closed, functions=[function])
    for response in (cannot, may_not):
        assert response.status_code == 400
        assert "--enable-functions" in response.json()["errors"][0]["message"]
    path = f"/client/v4/accounts/{ACCOUNT}/ai/run/{MODEL}"
    assert (await client.post(path, json={"messages": [USER], "functions": []})).status_code == 200
