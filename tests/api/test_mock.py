"""The server without a model: deterministic answers, scripts, faults on demand."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from live_server import live
from scripted_server import MODEL, RUN_PATH, frames_of
from tampu.api.app import create_app
from tampu.api.auth import AccessPolicy
from tampu.api.config import ServerConfig
from tampu.api.errors import KINDS
from tampu.cli.serve import build_mock_server
from tampu.core.errors import ConfigError
from tampu.serving.example_value import example_value
from tampu.serving.mock import mock_services, pieces
from tampu.serving.mock_script import Script, load_script

TOOL = {"name": "get_weather", "description": "d", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 3}},
    "required": ["city", "days"]}}  # fmt: skip


def mock_app(script: Script | None = None, **settings: Any) -> Any:
    return create_app(mock_services(script or Script(KINDS)), ServerConfig(**settings))


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


@pytest.fixture
async def mock() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(mock_app()) as client:
        yield client


async def ask(client: httpx.AsyncClient, text: str, **extra: Any) -> httpx.Response:
    return await client.post(RUN_PATH, json={"messages": [{"role": "user", "content": text}], **extra})


async def test_it_echoes_the_same_thing_every_time(mock: httpx.AsyncClient) -> None:
    first, second = [(await ask(mock, "Hello there")).json()["result"] for _ in range(2)]
    assert first == second
    assert first["response"] == "You said: Hello there"
    streamed = frames_of((await ask(mock, "Hello there", stream=True)).text)
    assert "".join(frame["response"] for frame in streamed) == first["response"]
    assert streamed[-1]["usage"] == first["usage"]
    assert first["usage"]["completion_tokens"] == len(pieces(first["response"])) == 4


async def test_limits_and_stops_work_as_on_the_real_server(mock: httpx.AsyncClient) -> None:
    cut = (await ask(mock, "a b c d", max_tokens=3)).json()["result"]
    assert (cut["response"], cut["finish_reason"]) == ("You said: a", "length")
    stopped = (await ask(mock, "a b c d", stop="b c")).json()["result"]
    assert (stopped["response"], stopped["finish_reason"]) == ("You said: a ", "stop")
    too_long = await ask(mock, "x", max_tokens=200_000)
    assert (too_long.status_code, too_long.json()["errors"][0]["code"]) == (413, 5021)
    invalid = await ask(mock, "x", temperature=9)
    assert (invalid.status_code, invalid.json()["errors"][0]["code"]) == (400, 5006)


@pytest.mark.parametrize(
    ("directive", "status", "code"),
    [("error=3040", 429, 3040), ("error=3007", 408, 3007), ("status=503", 503, 3043),
     ("error=3040 status=500", 500, 3040),
     ("error=5007", 400, 5007), ("status=400", 400, 3043), ("status=599", 599, 3043)],
)  # fmt: skip
async def test_faults_by_header_and_by_prompt(mock: httpx.AsyncClient, directive: str, status: int, code: int) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    by_header = await mock.post(RUN_PATH, json=body, headers={"x-tampu-mock": directive})
    by_prompt = await ask(mock, f"hi [[mock {directive}]]", stream=True)
    for response in (by_header, by_prompt):
        assert response.status_code == status
        assert response.json()["errors"][0]["code"] == code
    assert (await ask(mock, "hi")).status_code == 200


WRONG_DIRECTIVES = [
    ("eror=3040", "'eror' is not a key here (known: cut_after, delay_ms, error, finish_reason, status, token_delay_ms"),
    ("error", "error must be one of the codes 3003, 3006, "),
    ("error=abc", "not 'abc'"),
    ("error=9999", "not 9999"),
    ("error=3040 stauts=500", "'stauts' is not a key"),
    *((f"status={status}", f"status must be an HTTP status from 400 to 599, not {status}")
      for status in (20, 99, 101, 200, 301, 399, 600, 700, 1000)),
    ("delay_ms=-1", "delay_ms must be a number of milliseconds from 0 to 86400000, not '-1'"),
    ("token_delay_ms=999999999", "not 999999999"),
    ("cut_after=x", "cut_after must be a whole number of at least 0, not 'x'"),
    ("finish_reason=banana", "finish_reason must be one of stop, length, tool_calls, abort, error, not 'banana'"),
    ("times=2", "'times' is not a key"),
    ("reply=hello", "'reply' is not a key"),
    ("when=weather", "'when' is not a key"),
    (";", "names no key"),
]  # fmt: skip


@pytest.mark.parametrize(("directive", "problem"), WRONG_DIRECTIVES)
async def test_a_wrong_directive_is_refused_by_name(mock: httpx.AsyncClient, directive: str, problem: str) -> None:
    """A test that asks for a fault must not pass without it."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    by_header = await mock.post(RUN_PATH, json=body, headers={"x-tampu-mock": directive})
    by_prompt = await ask(mock, f"hi [[mock {directive}]]", stream=True)
    for response, where in ((by_header, "x-tampu-mock"), (by_prompt, "messages/0/content")):
        assert response.status_code == 400
        (error,) = response.json()["errors"]
        assert error["code"] == 5006
        assert f"the mock directive in '{where}' cannot be followed: " in error["message"]
        assert problem in error["message"]


async def test_a_wrong_directive_is_refused_in_the_envelope_of_its_route(mock: httpx.AsyncClient) -> None:
    wrong = {"x-tampu-mock": "eror=3040"}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    openai = await mock.post("/v1/chat/completions", json=chat, headers=wrong)
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "x-tampu-mock")
    prompts = {"model": MODEL, "prompt": ["a", "b [[mock eror=3040]]"], "stream": True}
    completion = await mock.post("/v1/completions", json=prompts)
    assert (completion.status_code, completion.json()["error"]["param"]) == (400, "prompt")
    binding = {"inputs": {"prompt": "hi"}, "options": {}}
    model = {"cf-consn-model-id": MODEL}
    for headers in (wrong | model, {f"mf-header-{name}": value for name, value in (wrong | model).items()}):
        sent = headers if headers.keys() >= wrong.keys() else headers | {"mf-url": "http://workers-binding.ai/run"}
        refused = await mock.post("/run" if sent is headers else "/", json=binding, headers=sent)
        assert (refused.status_code, refused.json()["internalCode"]) == (400, 5006)
        assert "'eror' is not a key" in refused.json()["description"]


@pytest.mark.parametrize("marker", ["[[mock]]", "[[mock: error=3040]]", "[[mock\nerror = 3040]]"])
async def test_a_marker_that_is_nearly_right_is_refused(mock: httpx.AsyncClient, marker: str) -> None:
    assert (await ask(mock, f"hi {marker}")).status_code == 400
    assert (await ask(mock, "a [[mock-up]] and [[mocking]]")).status_code == 200


async def test_every_marker_of_a_prompt_counts_and_the_header_wins(mock: httpx.AsyncClient) -> None:
    text = "hi [[mock error=3040]] [[mock status=500]]"
    both = await ask(mock, text)
    assert (both.status_code, both.json()["errors"][0]["code"]) == (500, 3040)
    body = {"messages": [{"role": "user", "content": text}]}
    by_header = await mock.post(RUN_PATH, json=body, headers={"x-tampu-mock": "status=503"})
    assert by_header.status_code == 503


async def test_embeddings_fail_on_demand_too(mock: httpx.AsyncClient) -> None:
    path, model = "/v1/embeddings", "@cf/baai/bge-small-en-v1.5"
    for directive, status, told in (
        ("error=3040", 429, "Capacity"),
        ("status=503", 503, "Internal server error"),
        ("cut_after=1", 400, "'cut_after' is not a key here (known: delay_ms, error, status)"),
    ):
        text = {"model": model, "input": ["a", "b"]}
        by_header = await mock.post(path, json=text, headers={"x-tampu-mock": directive})
        by_text = await mock.post(path, json=text | {"input": ["a", f"b [[mock {directive}]]"]})
        for response in (by_header, by_text):
            assert response.status_code == status
            assert told in response.json()["error"]["message"]


async def test_a_wrong_directive_uses_up_no_rule(tmp_path: Path) -> None:
    async with client_of(mock_app(script_of(tmp_path, "- {error: 3040, times: 1}"))) as client:
        assert (await ask(client, "hi [[mock eror=3040]]")).status_code == 400
        assert [(await ask(client, "hi")).status_code for _ in range(2)] == [429, 200]


async def test_forced_tools_and_json_mode_get_fitting_values(mock: httpx.AsyncClient) -> None:
    result = (await ask(mock, "hi", tools=[TOOL], tool_choice="required")).json()["result"]
    assert result["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "text", "days": 3}}]
    assert (result["response"], result["finish_reason"]) == ("", "tool_calls")
    schema = {"type": "json_schema", "json_schema": TOOL["parameters"]}
    assert (await ask(mock, "hi", response_format=schema)).json()["result"]["response"] == {"city": "text", "days": 3}


def script_of(tmp_path: Path, text: str) -> Script:
    path = tmp_path / "script.yaml"
    path.write_text(text)
    return load_script(path, KINDS)


async def test_a_script_speaks_in_order(tmp_path: Path) -> None:
    script = script_of(tmp_path, """
replies:
  - when: flaky
    error: 3040
    times: 2
  - when: weather
    reply: [It is sunny., It rains.]
  - when: {tool: get_weather}
    tool_calls: [{name: get_weather, arguments: {city: Lima}}]
  - when: /^[0-9]+$/
    reply: {"answer": 42}
  - when: cut
    reply: one two three
    finish_reason: length
""")  # fmt: skip
    async with client_of(mock_app(script)) as client:
        assert [(await ask(client, "flaky")).status_code for _ in range(3)] == [429, 429, 200]
        replies = [(await ask(client, "weather?")).json()["result"]["response"] for _ in range(3)]
        assert replies == ["It is sunny.", "It rains.", "It rains."]
        called = (await ask(client, "hi", tools=[TOOL])).json()["result"]
        assert called["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "Lima"}}]
        frames = frames_of((await ask(client, "hi", tools=[TOOL], stream=True)).text)
        assert frames[0] == {"response": "", "tool_calls": [{"index": 0, **called["tool_calls"][0]}]}
        assert frames[1]["finish_reason"] == "tool_calls"
        assert (await ask(client, "123")).json()["result"]["response"] == '{"answer": 42}'
        assert (await ask(client, "cut")).json()["result"]["finish_reason"] == "length"
        assert (await ask(client, "else")).json()["result"]["response"] == "You said: else"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("replies: 5", "must hold a list"),
        ("- {repy: x}", "unknown keys repy"),
        ("- {when: /(/}", "the pattern"),
        ("- {error: soon}", "rule 0: error must be one of the codes 3003, "),
        ("- {error: 1}", "not 1"),
        ("- {error: true}", "not True"),
        ("- x\n- {status: 20}", "rule 1: status must be an HTTP status from 400 to 599, not 20"),
        ("- {status: 700}", "not 700"),
        ("- {finish_reason: banana}", "finish_reason must be one of stop, "),
        ("- {finish_reason: [stop]}", "not ['stop']"),
        ("- {delay_ms: .nan}", "delay_ms must be a number of milliseconds"),
        ("- {token_delay_ms: .inf}", "not inf"),
        ("- {cut_after: 2.5}", "cut_after must be a whole number"),
        ("- {times: -1}", "times must be a whole number"),
        ("- {tool_calls: [{name: f, argument: {}}]}", "must be a list of"),
        ("- {tool_calls: [5]}", "must be a list of"),
        ("- 5", "must be a text or an object"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_script_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"mock script .*script\.yaml") as caught:
        script_of(tmp_path, text)
    assert problem in str(caught.value)


def test_the_documented_script_is_a_script(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "mock.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(script_of(tmp_path, example).rules) == 5


def test_a_cut_stream_breaks_the_connection() -> None:
    with live(mock_app()) as url, httpx.Client(base_url=url) as client:
        body = {"prompt": "a b c d e f", "stream": True}
        got = []
        with client.stream("POST", RUN_PATH, json=body, headers={"x-tampu-mock": "cut_after=3"}) as response:
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                got.extend(response.iter_text())
        assert "".join(got).count("data: ") == 3
        assert "[DONE]" not in "".join(got)
        for path in ("/v1/chat/completions", "/v1/completions"):
            told = {
                "model": MODEL,
                "prompt": "a b c d",
                "messages": [{"role": "user", "content": "a b c d"}],
                "stream": True,
            }
            told.pop("messages" if path == "/v1/completions" else "prompt")
            with (
                client.stream("POST", path, json=told, headers={"x-tampu-mock": "cut_after=2"}) as response,
                pytest.raises(httpx.RemoteProtocolError),
            ):
                response.read()
        slow = {"x-tampu-mock": "token_delay_ms=5 delay_ms=5"}
        began_s = time.monotonic()
        assert client.post(RUN_PATH, json={"prompt": "a b c d e f"}, headers=slow).status_code == 200
        assert time.monotonic() - began_s >= 0.035  # 7 pauses: a lower bound cannot flake


def test_a_cut_of_a_plain_answer_breaks_the_connection_and_is_no_error_of_the_server() -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "a b c d"}]}
    text = {"model": MODEL, "prompt": ["a b c", "d e f"]}
    called = {**chat, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}
    plain = [
        (RUN_PATH, {"prompt": "a b c d"}, "cut_after=3"),
        (RUN_PATH, {"prompt": "a b c d", "stream": True}, "cut_after=0"),
        ("/v1/chat/completions", chat, "cut_after=0"),
        ("/v1/chat/completions", called, "cut_after=1"),
        ("/v1/completions", text, "cut_after=2"),
        ("/v1/responses", {"model": MODEL, "input": "a b c d"}, "cut_after=2"),
    ]
    begun = [(path, {**body, "stream": True}, "cut_after=2") for path, body, _ in plain if body is not called]
    command = [sys.executable, "-m", "tampu", "serve", "--mock", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://[0-9.:]+", line)))
        with httpx.Client(base_url=url) as client:
            for path, body, directive in plain + begun:
                with pytest.raises(httpx.RemoteProtocolError):
                    client.post(path, json=body, headers={"x-tampu-mock": directive})
            assert client.post(RUN_PATH, json={"prompt": "a b"}).status_code == 200
    finally:
        process.terminate()
        errors = process.communicate(timeout=30)[1]
    assert errors == ""


async def test_functions_run_in_the_sandbox() -> None:
    built = build_mock_server(None, ServerConfig(), AccessPolicy(), None)
    function = {"name": "double", "code": "/** @param {{n: number}} o */ ({n}) => ({twice: n * 2})"}
    try:
        async with client_of(built.app) as client:
            demanded = await ask(client, "Hi", functions=[function], tool_choice="required")
            free = await ask(client, "Hi", functions=[function])
    finally:
        built.close()
    result = demanded.json()["result"]
    assert [call["name"] for call in result["tool_calls"]] == ["double"]
    assert result["response"] == 'You said: {"twice":2}'
    assert free.json()["result"]["response"] == "You said: Hi"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_script_that_always_calls_a_function_ends_after_the_last_round(tmp_path: Path, stream: bool) -> None:
    script = tmp_path / "replies.json"
    script.write_text('[{"tool_calls": [{"name": "f", "arguments": {}}]}]')
    built = build_mock_server(script, ServerConfig(), AccessPolicy(), None)
    try:
        async with client_of(built.app) as client:
            answer = await ask(client, "Hi", functions=[{"name": "f", "code": "() => 1"}], stream=stream)
    finally:
        built.close()
    assert answer.status_code == 200
    last = frames_of(answer.text)[-1] if stream else answer.json()["result"]
    assert [call["name"] for call in last["tool_calls"]] == ["f"] * 5


def test_no_model_code_is_imported() -> None:
    program = (
        "import sys, tampu.api.app, tampu.serving.mock\n"
        "heavy = {'numpy', 'tokenizers', 'gguf', 'llguidance', 'safetensors', 'sqlalchemy', 'huggingface_hub', "
        "'tampu._native', 'tampu.engine.engine', 'yaml'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "enum": ["b", "a"]}, "b"),
        ({"const": 5}, 5),
        ({"type": ["integer", "null"], "maximum": -2}, -2),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "boolean"}}}, True),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2}, [None, None]),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 4}]}, 5),
        ({"allOf": [{"properties": {"a": {"type": "string", "minLength": 6}}}, {"required": ["a"]}]}, {"a": "text--"}),
        ({"$ref": "#"}, None),
        ({"type": "string", "format": "uuid"}, "00000000-0000-4000-8000-000000000000"),
        ({"type": "string", "maxLength": 0}, ""),
        ({"type": "integer", "multipleOf": 5, "minimum": 7}, 10),
        ({"type": "integer", "multipleOf": 5, "maximum": 4}, 0),
        ({"type": "integer", "exclusiveMaximum": 1}, 0),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 0.5}, 0),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "integer", "multipleOf": 2, "exclusiveMaximum": 2, "minimum": -1}, 0),
        ({"type": "integer", "multipleOf": 2.5, "minimum": 1}, 5),
        ({"type": "integer", "multipleOf": 3, "minimum": 10**18}, 10**18 + 2),
        ({"type": "number", "minimum": 1e308, "multipleOf": 1e-5}, 0),
        ({"type": "number", "multipleOf": 1e-320}, 0),
        ({"type": "string", "format": ["x"]}, "text"),
    ],
)
def test_example_values(schema: Any, value: Any) -> None:
    assert example_value(schema) == value
