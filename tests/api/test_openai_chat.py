"""Chat completions over the real engine: shapes, streams, every parameter honoured or refused by name."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from scripted_server import ACCOUNT, MODEL, Server, eventually, frames_of, prompt_text
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.api.openai_chat import Caller, parse_chat
from tampu.serving.requests import ResponseFormat

PATHS = ("/v1/chat/completions", f"/client/v4/accounts/{ACCOUNT}/ai/v1/chat/completions")
MESSAGES = [{"role": "user", "content": "Hi"}]


def body(**members: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, **members}


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_has_openais_shape_and_no_envelope(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.post(path, json=body())
    answer = reply.json()
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.headers["cf-ai-req-id"]) == 36
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    milliseconds = int(answer["id"].removeprefix("id-"))
    assert answer["created"] == milliseconds // 1000
    message = {"role": "assistant", "content": "Hello, world"}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_a_stream_is_role_then_text_then_finish_with_usage(client: httpx.AsyncClient) -> None:
    plain = (await client.post(PATHS[0], json=body())).json()
    reply = await client.post(PATHS[0], json=body(stream=True))
    assert reply.headers["content-type"] == "text/event-stream"
    frames = frames_of(reply.text)
    assert len({(frame["id"], frame["created"], frame["object"], frame["model"]) for frame in frames}) == 1
    assert frames[0]["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert all(isinstance(frame["choices"][0]["delta"]["content"], str) for frame in frames)
    assert "".join(frame["choices"][0]["delta"]["content"] for frame in frames) == "Hello, world"
    assert [frame["choices"][0]["finish_reason"] for frame in frames[:-1]] == [None] * (len(frames) - 1)
    assert frames[-1]["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    assert [frame for frame in frames if "usage" in frame] == frames[-1:]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert frames[-1]["usage"][count] == plain["usage"][count]


async def test_several_choices_stream_apart_and_share_one_usage(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: f"answer {request.seed}"
    plain = (await client.post(PATHS[0], json=body(n=3, seed=7))).json()
    frames = frames_of((await client.post(PATHS[0], json=body(n=3, seed=7, stream=True))).text)
    texts = ["", "", ""]
    roles = []
    for frame in frames:
        (choice,) = frame["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
        if "role" in choice["delta"]:
            roles.append(choice["index"])
    assert sorted(roles) == [0, 1, 2]
    assert texts == [choice["message"]["content"] for choice in plain["choices"]]
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in plain["choices"]] == [0, 1, 2]
    assert [frame["usage"]["completion_tokens"] for frame in frames if "usage" in frame] == [
        plain["usage"]["completion_tokens"]
    ]


@pytest.mark.parametrize(("wanted", "expected"), [(True, 1), (False, 0), (None, 1)])
async def test_include_usage(client: httpx.AsyncClient, wanted: bool | None, expected: int) -> None:
    reply = await client.post(PATHS[0], json=body(stream=True, stream_options={"include_usage": wanted}))
    assert sum("usage" in frame for frame in frames_of(reply.text)) == expected


async def test_parameters_reach_the_engine(server: Server, client: httpx.AsyncClient) -> None:
    members = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "frequency_penalty": -1.5,
        "presence_penalty": 1,
        "repetition_penalty": 1.1,
        "logit_bias": {"65": -100, "66": 5.5},
        "seed": -3,
        "max_tokens": 9,
        "ignore_eos": True,
    }
    reply = await client.post(PATHS[0], json=body(**members))
    assert reply.status_code == 200, reply.text
    (request,) = server.requests
    sampling = request.sampling_params
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 7, 0.1)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (-1.5, 1.0, 1.1)
    assert sampling.logit_bias == ((65, -100.0), (66, 5.5))
    assert request.seed == 2**64 - 3
    assert sampling.max_tokens == 9
    assert sampling.stop_token_ids == ()


async def test_defaults_and_nulls(server: Server, client: httpx.AsyncClient) -> None:
    nulls = {"max_tokens": None, "stop": None, "temperature": None, "tools": None, "audio": None, "stream": None}
    assert (await client.post(PATHS[0], json=body(**nulls))).status_code == 200
    sampling = server.requests[0].sampling_params
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (256, 0.6, 1.0, 0)


async def test_the_newer_name_of_the_limit_wins(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PATHS[0], json=body(max_tokens=2, max_completion_tokens=3))).json()
    assert answer["choices"][0]["message"]["content"] == "Hel"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stop", ["lo", ["xyz", "lo"]])
async def test_stop_strings_end_the_answer_and_are_no_part_of_it(client: httpx.AsyncClient, stop: Any) -> None:
    answer = (await client.post(PATHS[0], json=body(stop=stop))).json()
    assert answer["choices"][0]["message"]["content"] == "Hel"
    assert answer["choices"][0]["finish_reason"] == "stop"
    frames = frames_of((await client.post(PATHS[0], json=body(stop=stop, stream=True))).text)
    assert "".join(frame["choices"][0]["delta"]["content"] for frame in frames) == "Hel"


async def test_logprobs_have_openais_shape_and_stream_the_same(client: httpx.AsyncClient) -> None:
    members = {"logprobs": True, "top_logprobs": 2}
    plain = (await client.post(PATHS[0], json=body(**members))).json()
    tokens = plain["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "Hello, world"
    assert set(tokens[0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert bytes(tokens[0]["bytes"]) == b"H"
    assert set(tokens[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}
    frames = frames_of((await client.post(PATHS[0], json=body(stream=True, **members))).text)
    streamed = [token for frame in frames for token in (frame["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == tokens
    bare = (await client.post(PATHS[0], json=body(logprobs=True))).json()
    assert bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 5.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 10**30}, "n"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"min_p": 1.1}, "min_p"),
        ({"logit_bias": {"65": 101}}, "logit_bias/65"),
        ({"logit_bias": {"a": 1}}, "logit_bias/a"),
        ({"logit_bias": {"-1": 1}}, "logit_bias/-1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stream": "true"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options/include_usage"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options/include_obfuscation"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format/type"),
        ({"response_format": "json_object"}, "response_format"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages/0/tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages/0/tool_calls/0"),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools/0/type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools/0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages/0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages/0/content/0"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"guided_regex": "a*"}, "guided_regex"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": "Hi"}, "prompt"),
        ({"temprature": 1}, "temprature"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    server: Server, client: httpx.AsyncClient, members: dict[str, Any], param: str
) -> None:
    reply = await client.post(PATHS[0], json=body(**members))
    answer = reply.json()
    assert reply.status_code == 400, reply.text
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert param.split("/")[0] in answer["error"]["message"]
    assert answer["errors"][0]["code"] == 5006
    assert answer["errors"][0]["message"] == answer["error"]["message"]
    assert answer["success"] is False
    assert server.requests == []


async def test_harmless_parameters_are_accepted(client: httpx.AsyncClient) -> None:
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "reasoning_effort": "none",
        "parallel_tool_calls": False,
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "image": [],
        "response_format": {"type": "text"},
        "options": {"rejectIfBusy": True},
        "tools": [],
        "tool_choice": "auto",
    }
    reply = await client.post(PATHS[0], json=body(**harmless))
    assert reply.status_code == 200, reply.text
    assert "x-tampu-ignored" not in reply.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_members_that_nobody_knows_are_named_in_a_header(client: httpx.AsyncClient, stream: bool) -> None:
    reply = await client.post(PATHS[0], json=body(session="a", wibble=1, nothing=None, stream=stream))
    assert reply.status_code == 200
    assert reply.headers["x-tampu-ignored"] == "session, wibble"


async def test_a_flood_of_unknown_members_is_refused(client: httpx.AsyncClient) -> None:
    reply = await client.post(PATHS[0], json=body(**{f"x{index}": 1 for index in range(5000)}))
    assert reply.status_code == 400
    assert "more than 32 unknown members" in reply.json()["error"]["message"]


async def test_token_ids_beyond_the_vocabulary_never_reach_the_runner(
    server: Server, client: httpx.AsyncClient
) -> None:
    reply = await client.post(PATHS[0], json=body(logit_bias={"259": 1}))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "logit_bias/259"
    assert server.requests == []


@pytest.mark.parametrize("raw", [b"", b"[]", b'"x"', b"null", b"5", b"{", b"\xff"])
async def test_a_body_that_is_no_object_is_a_400(client: httpx.AsyncClient, raw: bytes) -> None:
    reply = await client.post(PATHS[0], content=raw)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


async def test_conversations_in_every_shape_reach_the_template(server: Server, client: httpx.AsyncClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "three"},
    ]
    assert (await client.post(PATHS[0], json=body(messages=messages))).status_code == 200
    prompt = prompt_text(server.requests[0])
    for part in ("Be brief.", "One two", "add", "three"):
        assert part in prompt


@pytest.mark.parametrize("stream", [False, True])
async def test_an_over_long_prompt_is_an_error_before_the_first_byte(client: httpx.AsyncClient, stream: bool) -> None:
    messages = [{"role": "user", "content": "x" * 5000}]
    reply = await client.post(PATHS[0], json=body(messages=messages, stream=stream))
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert reply.json()["errors"][0]["code"] == 5021


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize("depth", [65, 200, 250])
async def test_schemas_of_any_depth_are_answered(client: httpx.AsyncClient, depth: int) -> None:
    for members in (
        {"guided_json": nested(depth)},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(depth)}}},
    ):
        reply = await client.post(PATHS[0], json=body(max_tokens=2, **members))
        assert reply.status_code == 400
        assert "deep" in reply.json()["error"]["message"]


@pytest.mark.parametrize("member", ["stop", "tool_choice", "response_format", "n", "logit_bias"])
async def test_values_too_deep_to_be_shown_are_refused_like_others(client: httpx.AsyncClient, member: str) -> None:
    """Deeper than Python can write, not deeper than the parser reads."""
    deep = b"[" * 1000 + b"]" * 1000
    content = orjson.dumps(body())[:-1] + b', "' + member.encode() + b'": ' + deep + b"}"
    reply = await client.post(PATHS[0], content=content)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == member


def test_nulls_of_a_schema_are_kept() -> None:
    call = parse_chat(body(guided_json={"const": None}), Caller("r"), ServerConfig())
    assert call.requests[0].response_format == ResponseFormat({"const": None})


_TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("members", "field", "value"),
    [
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages/0/role", '"bot"'),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user"}]}, "messages/1/content", "missing"),
        (
            {"tools": [{"type": "function", "function": {**_TOOL, "parameters": "x"}}]},
            "tools/0/function/parameters",
            '"x"',
        ),
        (
            {"tools": [{"type": "function", "function": {**_TOOL, "parameters": []}}]},
            "tools/0/function/parameters",
            "[]",
        ),
        ({"tools": [{**_TOOL, "description": 5}]}, "tools/0/description", "5"),
        *(
            ({"response_format": {"type": "json_schema", **given}}, f"response_format/{field}", value)
            for given, field, value in (
                ({}, "json_schema", "null"),
                ({"json_schema": "x"}, "json_schema", '"x"'),
                ({"json_schema": {"name": "x", "schema": 5}}, "json_schema/schema", "5"),
                ({"json_schema": {"name": "x", "schema": [{}]}}, "json_schema/schema", "[{}]"),
                ({"json_schema": {"name": "x", "strict": True}}, "json_schema/schema", "null"),
                ({"schema": 5}, "schema", "5"),
            )
        ),
    ],
)
async def test_a_wrong_member_is_named_with_its_value(
    client: httpx.AsyncClient, members: dict[str, Any], field: str, value: str
) -> None:
    reply = await client.post(PATHS[0], json=body(**members))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == field
    assert f"'{field}'" in error["message"]
    assert value in error["message"]


async def test_an_unknown_model_is_5007(client: httpx.AsyncClient) -> None:
    reply = await client.post(PATHS[0], json=body(model="gpt-4o"))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "model_not_found"
    assert reply.json()["errors"][0]["message"] == f"No such model gpt-4o or task. This server answers to {MODEL}."


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_that_breaks_says_so_and_ends(server: Server, client: httpx.AsyncClient, path: str) -> None:
    breaking = asyncio.create_task(server.break_while_talking())
    members = {"messages": MESSAGES} if "chat" in path else {"prompt": ["a", "b"]}
    reply = await client.post(path, json={"model": MODEL, "stream": True, "max_tokens": 2000, **members})
    await breaking
    frames = frames_of(reply.text)
    assert set(frames[-1]) == {"error"}
    assert set(frames[-1]["error"]) == {"message", "type", "code", "param"}
    assert frames[-1]["error"]["type"] == "server_error"
    assert all(frame["choices"][0]["finish_reason"] is None for frame in frames[:-1])
    assert "secret" not in reply.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_work(server: Server, stream: bool) -> None:
    server.say = lambda request: "word " * 500
    server.runner.step_delay_s = 0.001
    messages = [{"type": "http.request", "body": orjson.dumps(body(stream=stream, max_tokens=2000, n=2))}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await eventually(lambda: len(server.runner.step_log) > 3)
        return {"type": "http.disconnect"}

    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "POST", "path": PATHS[0], "query_string": b"", "client": ("127.0.0.1", 1),
             "headers": [(b"host", b"localhost")]}  # fmt: skip
    await create_app(server.services, ServerConfig())(scope, receive, send)
    assert b"[DONE]" not in b"".join(sent)
    await eventually(lambda: server.engine.stats().num_running == 0)
    assert server.engine.stats().aborts_total == 2


async def test_strict_mode_refuses_in_the_hosted_words(strict: httpx.AsyncClient) -> None:
    arrays = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    reply = await strict.post(PATHS[1], json=body(messages=arrays))
    assert reply.status_code == 400
    assert reply.json()["errors"][0]["message"] == (
        "AiError: Bad input: Error: oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt', "
        "Type mismatch of '/messages/0/content', 'string' not in 'array'"
    )
    assert (await strict.post(PATHS[1], json=body(frequency_penalty=-1))).status_code == 400
    assert (await strict.post(PATHS[1], json=body(max_tokens=None, stop=None))).status_code == 200
