"""Unmodified JavaScript clients against a running server: streaming and not, tools, JSON, errors, retries, paging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from node_tools import NodeTools

pytestmark = pytest.mark.node

MODEL = "@cf/meta/llama-3.1-8b-instruct-fast"
HELLO = "You said: Say hello"
WEATHER = "It is 21 degrees in Lima."
ACCOUNT_BASE = "/client/v4/accounts/0123456789abcdef0123456789abcdef/ai/v1"


def test_cloudflare(node: NodeTools) -> None:
    report = node.script("cloudflare-sdk.mjs")
    for answer in (report["prompt"], report["messages"]):
        assert answer["response"] == HELLO
        assert (
            answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
        )
    assert report["flaky"]["requests"] == 3  # two refusals for lack of capacity, then the answer
    assert report["flaky"]["result"]["response"] == "You said: flaky for cloudflare"
    down = report["down"]
    assert (down["requests"], down["result"]["type"], down["result"]["status"]) == (3, "RateLimitError", 429)
    assert down["result"]["errors"][0]["code"] == 3040
    bad = report["badInput"]
    assert (bad["requests"], bad["result"]["type"], bad["result"]["status"]) == (1, "BadRequestError", 400)
    assert bad["result"]["errors"][0]["code"] == 5006
    unknown = report["unknownModel"]["errors"][0]
    assert unknown["code"] == 5007
    assert unknown["message"].startswith("No such model @cf/none/such or task. This server answers to @cf/meta/")
    assert report["models"].count(MODEL) == 1  # the pages end
    assert report["schema"] == ["input", "output"]
    assert report["authors"] >= 1
    assert report["tasks"] >= 1


@pytest.mark.parametrize("base", ["/v1", ACCOUNT_BASE])
def test_openai(node: NodeTools, base: str) -> None:
    report = node.script(f"openai-sdk.mjs {base}")
    assert report["plain"]["choices"][0]["message"]["content"] == HELLO
    assert report["plain"]["choices"][0]["finish_reason"] == "stop"
    check_chunks(report["chunks"])
    assert report["helper"] == HELLO
    call = report["tools"]["message"]["tool_calls"][0]
    assert report["tools"]["finish_reason"] == "tool_calls"
    assert call["id"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Lima"}
    first, *more = report["callDeltas"]
    assert (first["index"], first["type"], first["function"]) == (
        0,
        "function",
        {"name": "get_weather", "arguments": ""},
    )
    assert first["id"]
    assert all(delta.keys() == {"index", "function"} for delta in more)
    fragments = [delta["function"]["arguments"] for delta in more]
    assert len(fragments) > 1
    assert "".join(fragments) == call["function"]["arguments"]
    assert [delta for delta in report["argumentDeltas"] if delta] == fragments
    streamed = report["streamedCall"]
    assert streamed["finish_reason"] == "tool_calls"
    assert streamed["message"]["tool_calls"][0]["function"]["arguments"] == call["function"]["arguments"]
    assert report["runTools"] == report["runToolsStreaming"] == WEATHER
    assert isinstance(json.loads(report["json"])["city"], str)
    assert report["models"].count(MODEL) == 1
    assert report["completion"]["text"] == HELLO


@pytest.mark.parametrize("base", ["/v1", ACCOUNT_BASE])
def test_openai_errors(node: NodeTools, base: str) -> None:
    report = node.script(f"openai-errors.mjs {base}")
    down = report["down"]
    assert (down["requests"], down["result"]["type"], down["result"]["status"]) == (3, "RateLimitError", 429)
    assert down["result"]["code"] == "3040"
    bad = report["badInput"]
    assert (bad["requests"], bad["result"]["type"], bad["result"]["status"]) == (1, "BadRequestError", 400)
    assert "temperature" in bad["result"]["message"]
    assert report["badStream"] == bad["result"]
    assert report["unknownModel"]["status"] == 400
    assert "@cf/none/such" in report["unknownModel"]["message"]
    assert report["flaky"]["requests"] == 3
    assert report["cut"]["chunks"] == 2
    assert report["cut"]["type"]


def check_chunks(chunks: list[dict[str, Any]]) -> None:
    """Role first, whole text, one finish with usage, never an empty choice list."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == HELLO
    reasons = [chunk["choices"][0].get("finish_reason") for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_ai_sdk(node: NodeTools) -> None:
    report = node.script("ai-sdk.mjs")
    for way in ("binding", "rest"):
        part = report[way]
        assert part["plain"]["text"] == "".join(part["chunks"]) == HELLO
        assert part["plain"]["finishReason"] == part["streamFinish"] == "stop"
        assert part["plain"]["usage"] == part["streamUsage"]
        assert part["plain"]["usage"]["outputTokens"] > 0
        assert part["cut"] == "length"
        assert part["tools"] == {"text": WEATHER, "steps": ["tool-calls", "stop"]}
        assert part["toolStream"] == WEATHER
        assert isinstance(part["object"]["city"], str)
        assert part["unknownModel"]["status"] == 400
        assert "No such model @cf/none/such" in part["unknownModel"]["message"]
        assert part["down"]["status"] == 429
    assert report["flaky"] == "You said: flaky for ai-sdk"


def test_ai_utils(node: NodeTools) -> None:
    report = node.script("ai-utils.mjs")
    assert report["called"] == ["Lima", "Lima"]
    assert "Lima" in report["answer"]["response"]
    assert report["stream"].endswith("data: [DONE]\n\n")


def test_wrangler_lists_models_and_schema(node: NodeTools, tmp_path: Path) -> None:
    account = {
        "CLOUDFLARE_API_BASE_URL": f"{node.server_url}/client/v4",
        "CLOUDFLARE_API_TOKEN": "token",
        "CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef0123456789abcdef",
    }
    project = node.project(tmp_path, {})
    models = json.loads(node.run("npx wrangler ai models list --json", project, **account))
    assert [model["name"] for model in models].count(MODEL) == 1
    printed = node.run(f"npx wrangler ai models schema {MODEL}", project, **account)
    schema = json.loads(printed[printed.index("{") :])
    assert schema.keys() == {"input", "output"}
