"""Text completions over the real engine: every kind of prompt, several at once, streams and log probabilities."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from scripted_server import ACCOUNT, MODEL, Server, eventually, frames_of, prompt_text

PATH = f"/client/v4/accounts/{ACCOUNT}/ai/v1/completions"


def body(**members: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Once", **members}


@pytest.fixture
def echoing(server: Server) -> Server:
    """A model that says what it was asked, in angle brackets."""
    server.say = lambda request: f"<{prompt_text(request)}>"
    return server


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
async def test_an_answer_has_openais_shape(client: httpx.AsyncClient, path: str) -> None:
    answer = (await client.post(path, json=body())).json()
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hello, world", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a b", ["<a b>"]),
        (["a", "b"], ["<a>", "<b>"]),
        ([97, 98], ["<ab>"]),
        ([[97], [98, 99]], ["<a>", "<bc>"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_kind_of_prompt(
    echoing: Server, client: httpx.AsyncClient, prompt: Any, texts: list[str], stream: bool
) -> None:
    reply = await client.post(PATH, json=body(prompt=prompt, stream=stream))
    assert reply.status_code == 200, reply.text
    if not stream:
        assert [choice["text"] for choice in reply.json()["choices"]] == texts
        return
    frames = frames_of(reply.text)
    streamed = [""] * len(texts)
    for frame in frames:
        streamed[frame["choices"][0]["index"]] += frame["choices"][0]["text"]
    assert streamed == texts
    assert sum(frame["choices"][0]["finish_reason"] is not None for frame in frames) == len(texts)
    assert [frame for frame in frames if "usage" in frame] == frames[-1:]
    num_prompt_tokens = sum(len(text) - 2 for text in texts)
    assert frames[-1]["usage"]["prompt_tokens"] == num_prompt_tokens


async def test_no_chat_template_is_applied(echoing: Server, client: httpx.AsyncClient) -> None:
    await client.post(PATH, json=body(prompt="bare"))
    assert prompt_text(echoing.requests[0]) == "bare"


async def test_choices_count_through_the_prompts(echoing: Server, client: httpx.AsyncClient) -> None:
    answer = (await client.post(PATH, json=body(prompt=["a", "b"], n=2, best_of=2))).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "<a>"), (1, "<a>"), (2, "<b>"), (3, "<b>"),
    ]  # fmt: skip
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_repeats_the_prompt(client: httpx.AsyncClient, stream: bool) -> None:
    reply = await client.post(PATH, json=body(prompt=["One ", "Two "], echo=True, max_tokens=5, stream=stream))
    texts = ["", ""]
    for answer in frames_of(reply.text) if stream else [reply.json()]:
        for choice in answer["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["One Hello", "Two Hello"]


async def test_logprobs_have_the_older_shape(client: httpx.AsyncClient) -> None:
    plain = (await client.post(PATH, json=body(logprobs=2, max_tokens=3))).json()["choices"][0]["logprobs"]
    assert plain["tokens"] == ["H", "e", "l"]
    assert plain["text_offset"] == [0, 1, 2]
    assert len(plain["token_logprobs"]) == len(plain["top_logprobs"]) == 3
    frames = frames_of((await client.post(PATH, json=body(logprobs=2, max_tokens=3, stream=True))).text)
    streamed = [frame["choices"][0]["logprobs"] for frame in frames if frame["choices"][0]["logprobs"]]
    for key, values in plain.items():
        assert [value for part in streamed for value in part[key]] == values
    zero = (await client.post(PATH, json=body(logprobs=0))).json()["choices"][0]["logprobs"]
    assert zero["tokens"]


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": [259]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"tools": [{}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"raw": False}, "raw"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_honoured_is_refused_by_name(
    server: Server, client: httpx.AsyncClient, members: dict[str, Any], param: str, stream: bool
) -> None:
    reply = await client.post(PATH, json=body(**members, stream=stream))
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert server.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_one_bad_prompt_of_several_fails_all_before_the_first_byte(
    server: Server, client: httpx.AsyncClient, stream: bool
) -> None:
    reply = await client.post(PATH, json=body(prompt=["fine", "x" * 5000, "fine, too"], stream=stream))
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    await eventually(lambda: server.engine.stats().num_running == 0)


async def test_an_empty_suffix_is_no_suffix(client: httpx.AsyncClient) -> None:
    assert (await client.post(PATH, json=body(suffix="", raw=True))).status_code == 200
