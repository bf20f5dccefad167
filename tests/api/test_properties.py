"""Properties of the wire: any text streams to the plain answer, every frame is strictly typed, no body is a 5xx."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripted_server import MODEL, RUN_PATH, Server, frames_of
from tampu.api.run_schema import INPUT_SCHEMA

KEYS = st.text(max_size=4) | st.sampled_from(["role", "content", "name", "type", "function", "parameters", "code"])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
FIELDS = (*INPUT_SCHEMA["oneOf"][0]["properties"], *INPUT_SCHEMA["oneOf"][1]["properties"], "stop", "response_format",
          "tool_choice", "min_p", "guided_json", "max_completion_tokens", "ignore_eos", "options", "n")  # fmt: skip
ODD_FIELDS = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
GOOD_PART = st.sampled_from([{"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}, {}])
BODIES = st.builds(lambda good, odd: {**good, **odd}, GOOD_PART, ODD_FIELDS) | JSON
RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for all examples: what one request leaves behind would show in the next."""
    made = Server()
    yield made
    assert made.generator.num_open_requests == 0
    made.close()


def send(server: Server, path: str, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """One request to a fresh app."""

    async def go() -> httpx.Response:
        async with server.client() as client:
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(go())


def check_usage(usage: Any) -> None:
    assert usage.keys() == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "neurons"}
    counts = [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]]
    assert all(type(count) is int and count >= 0 for count in counts)
    assert counts[0] + counts[1] == counts[2]
    assert type(usage["prompt_tokens_details"]["cached_tokens"]) is int
    assert type(usage["neurons"]) is float


@RELAXED
@given(text=st.text(st.characters(codec="utf-8"), max_size=40) | st.integers().map(str), body=GOOD_PART)
def test_a_stream_joins_to_the_plain_answer_and_every_frame_is_typed(
    shared: Server, text: str, body: dict[str, Any]
) -> None:
    shared.say = lambda request: text
    body = body or {"prompt": "x"}
    plain = send(shared, RUN_PATH, orjson.dumps(body)).json()["result"]
    streamed = send(shared, RUN_PATH, orjson.dumps({**body, "stream": True}))
    assert plain.keys() == {"response", "usage", "finish_reason"}
    *frames, last = frames_of(streamed.text)
    for frame in frames:
        assert frame.keys() == {"response"}
        assert type(frame["response"]) is str
        assert frame["response"]
    assert last.keys() == {"response", "usage", "finish_reason"}
    assert last["response"] == ""
    check_usage(last["usage"])
    check_usage(plain["usage"])
    assert last["finish_reason"] == plain["finish_reason"] == "stop"
    assert "".join(frame["response"] for frame in frames) == plain["response"] == text


@RELAXED
@given(body=BODIES)
def test_no_body_is_a_server_error(shared: Server, body: Any) -> None:
    shared.say = lambda request: "ok"
    response = send(shared, RUN_PATH, json.dumps(body).encode())
    assert response.status_code in (200, 400, 405, 413)
    if response.status_code != 200:
        (error,) = response.json()["errors"]
        assert error["code"] in (3003, 5005, 5006, 5021, 5024, 8001)
        assert error["message"].startswith("AiError: ")


@RELAXED
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_are_a_server_error_through_rest_or_binding(shared: Server, content: bytes) -> None:
    rest = send(shared, RUN_PATH, content)
    assert rest.status_code == 400
    bound = send(shared, "/run?version=3", content, {"cf-consn-model-id": MODEL})
    assert bound.status_code == 400
    assert type(bound.json()["internalCode"]) is int
