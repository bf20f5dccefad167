"""The official `openai` package for Python, unmodified, against a running server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from fake_embedder import DIMENSIONS, FakeEmbedder
from live_server import live
from scripted_server import ACCOUNT, MODEL, Server, prompt_text
from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.api.errors import KINDS
from tampu.core.request import Request
from tampu.serving.metrics import Metrics
from tampu.serving.mock import MockGenerator, mock_model_card
from tampu.serving.mock_script import load_script
from tampu.serving.services import Services

HOSTED = f"/client/v4/accounts/{ACCOUNT}/ai/v1"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCRIPT = {
    "replies": [
        {"when": {"tool": "get_weather"}, "tool_calls": [{"name": "get_weather", "arguments": {"city": "Lima"}}]},
        {"when": "busy", "error": 3040, "times": 1},
        {"when": "always down", "status": 503},
        {"when": "cut", "reply": "one two three four", "cut_after": 2},
        {"when": "a pair", "reply": '{"left": 1, "right": "two"}'},
    ]
}


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


class Pair(BaseModel):
    """What the model is made to answer."""

    left: int
    right: str


@pytest.fixture(scope="module")
def engine_url() -> Iterator[str]:
    """The real engine over the scripted runner."""
    server = Server()
    services = replace(server.services, embeddings=FakeEmbedder())
    with live(create_app(services, ServerConfig())) as url:
        yield url
    server.close()


@pytest.fixture(scope="module")
def mock_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The mock, with tool calls and faults."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps(SCRIPT))
    generator = MockGenerator(Metrics(), load_script(script, KINDS))
    services = Services(generator=generator, model_card=mock_model_card(), engine=generator)
    with live(create_app(services, ServerConfig())) as url:
        yield url


def say_call(request: Request) -> str:
    """A call, then what its result leads to."""
    if "<tool_response>" in prompt_text(request):
        return "Take a coat."
    call = '<tool_call>\n{"name": "GetWeather", "arguments": {"city":"Lima", "days": 2}}\n</tool_call>'
    return f"Let me look.\n{call}" if "Say it" in prompt_text(request) else call


@pytest.fixture(scope="module")
def caller() -> Iterator[openai.OpenAI]:
    """The real engine over a runner that calls; it obeys masks."""
    server = Server(say=say_call)
    with (
        live(create_app(server.services, ServerConfig())) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="a") as c,
    ):
        yield c
    server.close()


@pytest.fixture(params=["/v1", HOSTED])
def client(engine_url: str, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=engine_url + request.param, api_key="any") as made:
        yield made


@pytest.fixture
def mock(mock_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=mock_url + HOSTED, api_key="any", max_retries=1) as made:
        yield made


@pytest.fixture
async def async_client(engine_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=engine_url + HOSTED, api_key="any") as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, logprobs=True, top_logprobs=1)
    assert [choice.message.content for choice in answer.choices] == ["Hello, world"] * 2
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].token == "H"


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 13


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.done" in kinds
    assert final.choices[0].message.content == "Hello, world"
    assert final.usage is not None


async def test_async_chat_and_stream(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello, world"
    stream = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "Hello, world"


def test_a_stream_may_be_left_early(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model=MODEL, messages=MESSAGES).choices


def test_tools_and_their_stream(mock: openai.OpenAI) -> None:
    answer = mock.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    assert (call.type, call.function.name, call.function.arguments) == ("function", "get_weather", '{"city": "Lima"}')
    with mock.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=[TOOL]) as stream:
        stream.until_done()
        streamed: Any = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.name == "get_weather"
    assert streamed.message.tool_calls[0].id
    followed: Any = [*MESSAGES, choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    final = mock.chat.completions.create(model=MODEL, messages=followed, tools=[TOOL])
    assert final.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "GetWeather"}}])
def test_the_stream_helper_parses_fragments(caller: openai.OpenAI, choice: Any) -> None:
    tools: Any = [openai.pydantic_function_tool(GetWeather)]
    ask: Any = {"model": MODEL, "messages": MESSAGES, "tools": tools, "tool_choice": choice, "temperature": 0}
    whole = caller.chat.completions.parse(**ask).choices[0]
    assert whole.message.tool_calls
    assert whole.message.tool_calls[0].function.parsed_arguments == GetWeather(city="Lima", days=2)
    with caller.chat.completions.stream(**ask) as stream:
        events: Any = list(stream)
        final: Any = stream.get_final_completion().choices[0]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = (event for event in events if event.type == "tool_calls.function.arguments.done")
    assert len(deltas) > 10
    written = whole.message.tool_calls[0].function.arguments
    assert (
        "".join(event.arguments_delta for event in deltas) == done.arguments == written == '{"city":"Lima", "days": 2}'
    )
    assert done.parsed_arguments == GetWeather(city="Lima", days=2)
    assert final.message.tool_calls[0].function.parsed_arguments == GetWeather(city="Lima", days=2)
    assert (final.message.content or None) == (whole.message.content or None)
    assert final.finish_reason == whole.finish_reason == "tool_calls"
    call: Any = final.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "Snow."}
    after = caller.chat.completions.create(
        model=MODEL, messages=[*MESSAGES, final.message.to_dict(), result], tools=tools, temperature=0
    )
    assert after.choices[0].message.content == "Take a coat."


def test_responses_stream_fragments(caller: openai.OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(GetWeather)["function"]
    ask: Any = {"model": MODEL, "input": "Say it", "tools": [{"type": "function", **tool}], "temperature": 0}
    with caller.responses.stream(**ask) as stream:
        events: Any = list(stream)
        text, call = stream.get_final_response().output
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 10
    assert text.type == "message"
    assert call.type == "function_call"
    assert "".join(deltas) == call.arguments == '{"city":"Lima", "days": 2}'
    assert call.status == "completed"
    assert caller.responses.create(**ask).output[1].arguments == call.arguments


def test_the_older_functions(mock: openai.OpenAI) -> None:
    functions: Any = [TOOL["function"]]
    choice = mock.chat.completions.create(model=MODEL, messages=MESSAGES, functions=functions).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "get_weather"
    chunks = list(mock.chat.completions.create(model=MODEL, messages=MESSAGES, functions=functions, stream=True))
    calls = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert [call.name for call in calls] == ["get_weather", *[None] * (len(calls) - 1)]
    assert "".join(call.arguments or "" for call in calls) == '{"city": "Lima"}'
    assert chunks[-1].choices[0].finish_reason == "function_call"


def test_parse_helpers(mock: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a pair, please"}]
    answer = mock.chat.completions.parse(model=MODEL, messages=messages, response_format=Pair)
    assert answer.choices[0].message.parsed == Pair(left=1, right="two")
    response = mock.responses.parse(model=MODEL, input="a pair, please", text_format=Pair)
    assert response.output_parsed == Pair(left=1, right="two")


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=5, logprobs=1, echo=False)
    assert [choice.text for choice in answer.choices] == ["Hello", "Hello"]
    assert answer.choices[0].logprobs is not None
    chunks = list(client.completions.create(model=MODEL, prompt=[72, 105], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello, world"


def test_embeddings_in_the_clients_own_base64(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="@cf/baai/bge-small-en-v1.5", input=["one", "three"])
    assert [len(item.embedding) for item in answer.data] == [DIMENSIONS, DIMENSIONS]
    assert answer.data[0].embedding[3] == 1.0
    plain = client.embeddings.create(model="@cf/baai/bge-small-en-v1.5", input="one", encoding_format="float")
    assert plain.data[0].embedding == answer.data[0].embedding
    assert answer.usage.prompt_tokens == 2


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "@cf/baai/bge-small-en-v1.5"]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hi", instructions="Be kind.")
    assert answer.output_text == "Hello, world"
    assert answer.status == "completed"
    assert answer.usage is not None
    events = list(client.responses.create(model=MODEL, input="Hi", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "Hello, world"


def test_responses_call_tools(mock: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL["function"], "strict": True}
    answer = mock.responses.create(model=MODEL, input="Hi", tools=[tool])
    (call,) = answer.output
    assert call.type == "function_call"
    with mock.responses.stream(model=MODEL, input="Hi", tools=[tool]) as stream:
        stream.until_done()
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert streamed.arguments == call.arguments
    assert json.loads(call.arguments) == {"city": "Lima"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items: Any = [{"role": "user", "content": "Hi"}, *[item.to_dict() for item in answer.output], result]
    assert mock.responses.create(model=MODEL, input=items, tools=[tool]).output_text


def test_errors_have_code_param_and_message(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert "temperature" in str(caught.value)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    long: Any = [{"role": "user", "content": "x" * 6000}]
    with pytest.raises(openai.APIStatusError) as too_long:
        client.chat.completions.create(model=MODEL, messages=long, stream=True)
    assert (too_long.value.status_code, too_long.value.code) == (413, "context_length_exceeded")


def test_busy_servers_are_tried_again(mock: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "busy?"}]
    assert mock.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
    down: Any = [{"role": "user", "content": "always down"}]
    with pytest.raises(openai.InternalServerError):
        mock.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=down)


def test_a_cut_stream_is_an_error_to_the_client(mock: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "cut"}]
    stream = mock.chat.completions.create(model=MODEL, messages=messages, stream=True)
    texts = [next(stream).choices[0].delta.content for _ in range(3)]  # the first has the role
    with pytest.raises(openai.APIConnectionError):
        next(stream)
    assert "".join(filter(None, texts)) == "one two"


def test_raw_and_streaming_responses(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
    assert raw.headers["cf-ai-req-id"]
    assert raw.parse().choices[0].message.content == "Hello, world"
    streaming = client.chat.completions.with_streaming_response
    with streaming.create(model=MODEL, messages=MESSAGES, stream=True) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_the_example_of_the_documentation(engine_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    assert "http://127.0.0.1:8900" in example
    exec(example.replace("http://127.0.0.1:8900", engine_url), {})  # noqa: S102
    assert capsys.readouterr().out == "Hello, world\n"
