"""The run endpoint over ASGI: envelopes, streams, errors, limits, disconnects."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import httpx
import orjson
import pytest

from scripted_server import ACCOUNT, MAX_MODEL_LEN, MODEL, RUN_PATH, Server, eventually, frames_of, prompt_text
from tampu.api.app import create_app
from tampu.api.config import ServerConfig

USER = {"role": "user", "content": "hi"}


async def test_a_plain_answer_comes_in_the_v4_envelope(client: httpx.AsyncClient) -> None:
    response = await client.post(RUN_PATH, json={"messages": [USER]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert uuid.UUID(response.headers["cf-ai-req-id"])
    assert re.fullmatch(r"[0-9a-f]{16}-TPU", response.headers["cf-ray"])
    body = response.json()
    usage = body["result"]["usage"]
    assert body == {
        "result": {"response": "Hello, world", "usage": usage, "finish_reason": "stop"},
        "success": True,
        "errors": [],
        "messages": [],
    }
    assert usage["completion_tokens"] == len("Hello, world") + 1  # the end token was generated, too
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    expected = usage["prompt_tokens"] * 0.004119 + usage["completion_tokens"] * 0.034868
    assert usage["neurons"] == pytest.approx(expected, abs=1e-4)
    assert response.headers["cf-ai-neurons"] == f"{expected:.2f}"


async def test_a_repeated_prompt_reports_cached_tokens(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x" * 200}
    await client.post(RUN_PATH, json=body)
    usage = (await client.post(RUN_PATH, json=body)).json()["result"]["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


async def test_a_stream_joins_to_the_plain_answer(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: 'Grüße, 世界 🦙! 42 "quoted"\n'
    plain = (await client.post(RUN_PATH, json={"prompt": "hi"})).json()["result"]
    response = await client.post(RUN_PATH, json={"prompt": "hi", "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert uuid.UUID(response.headers["cf-ai-req-id"])
    *texts, last = frames_of(response.text)
    assert all(frame.keys() == {"response"} and isinstance(frame["response"], str) for frame in texts)
    assert "".join(frame["response"] for frame in texts) == plain["response"] == 'Grüße, 世界 🦙! 42 "quoted"\n'
    assert last == {"response": "", "usage": last["usage"], "finish_reason": "stop"}
    assert last["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]


async def test_padding_is_a_prefix_of_the_known_string(server: Server) -> None:
    async with server.client(is_stream_padded=True) as client:
        response = await client.post(RUN_PATH, json={"prompt": "hi", "stream": True})
    *texts, _ = frames_of(response.text)
    padding = "abcdefghijklmnoprstuvxyz1234567890" * 2
    assert texts
    for frame in texts:
        assert len(frame["p"]) >= 5
        assert padding.startswith(frame["p"])


@pytest.mark.parametrize("model", [MODEL, MODEL.replace("/", "%2F"), MODEL.replace("@", "%40"),
                                   "%40cf%2Fmeta%2Fllama-3.1-8b-instruct-fast",
                                   "@cf/meta/llama-3.1-8b-instruct-fp8-fast"])  # fmt: skip
async def test_the_model_may_be_spelled_in_every_encoding(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post(f"/client/v4/accounts/{ACCOUNT}/ai/run/{model}", json={"prompt": "hi"})
    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "apbplication/json", "text/plain", None])
async def test_the_body_is_json_whatever_the_content_type(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await client.post(RUN_PATH, content=b'{"prompt": "hi"}', headers=headers)
    assert response.status_code == 200


async def test_the_prompt_is_a_user_turn_unless_raw(server: Server, client: httpx.AsyncClient) -> None:
    await client.post(RUN_PATH, json={"prompt": "hi"})
    await client.post(RUN_PATH, json={"prompt": "hi", "raw": True})
    templated, raw = server.requests
    assert "user\nhi" in prompt_text(templated)
    assert prompt_text(raw) == "hi"


async def test_only_a_raw_prompt_may_spell_special_tokens(server: Server, client: httpx.AsyncClient) -> None:
    text = "<|im_start|>user\nhi<|im_end|>"
    await client.post(RUN_PATH, json={"prompt": text, "raw": True})
    await client.post(RUN_PATH, json={"prompt": text})
    raw, templated = server.requests
    assert raw.prompt_token_ids == (256, *b"user\nhi", 257)
    assert text in prompt_text(templated)


async def test_page_defaults_and_parameters_reach_the_engine(server: Server, client: httpx.AsyncClient) -> None:
    await client.post(RUN_PATH, json={"prompt": "hi"})
    body = {"max_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 42, "repetition_penalty": 1.1,
            "frequency_penalty": 0.2, "presence_penalty": 0.3, "min_p": 0.1,
            "logit_bias": {"65": -3, "7": 2.5}}  # fmt: skip
    await client.post(RUN_PATH, json={"messages": [USER], **body})
    first, second = (request.sampling_params for request in server.requests)
    assert (first.max_tokens, first.temperature, first.top_k, first.top_p) == (256, 0.6, 0, 1.0)
    assert first.stop_token_ids == (257, 258)
    assert server.requests[1].seed == 42
    assert (second.max_tokens, second.temperature, second.top_p, second.top_k) == (7, 0.0, 0.5, 3)
    assert (second.repetition_penalty, second.frequency_penalty, second.presence_penalty) == (1.1, 0.2, 0.3)
    assert (second.min_p, second.logit_bias) == (0.1, ((65, -3.0), (7, 2.5)))


async def test_without_a_seed_each_request_draws_its_own(server: Server, client: httpx.AsyncClient) -> None:
    for _ in range(3):
        await client.post(RUN_PATH, json={"prompt": "hi"})
    assert len({request.seed for request in server.requests}) == 3


async def test_stop_strings_cut_the_answer_and_end_the_request(server: Server, client: httpx.AsyncClient) -> None:
    server.say = lambda request: "one two three four"
    body = {"prompt": "hi", "stop": ["ee f"]}
    result = (await client.post(RUN_PATH, json=body)).json()["result"]
    assert (result["response"], result["finish_reason"]) == ("one two thr", "stop")
    assert result["usage"]["completion_tokens"] == len("one two three f")
    streamed = await client.post(RUN_PATH, json={**body, "stream": True})
    assert "".join(frame["response"] for frame in frames_of(streamed.text)) == "one two thr"


async def test_a_cut_answer_says_so(server: Server, client: httpx.AsyncClient) -> None:
    result = (await client.post(RUN_PATH, json={"prompt": "hi", "max_tokens": 5})).json()["result"]
    assert (result["response"], result["finish_reason"]) == ("Hello", "length")
    assert result["usage"]["completion_tokens"] == 5


async def test_default_mode_takes_null_contents_and_text_parts(server: Server, client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "4"}]  # fmt: skip
    response = await client.post(RUN_PATH, json={"messages": messages})
    assert response.status_code == 200
    assert "user\nab" in prompt_text(server.requests[0])


async def test_refusals_carry_the_hosted_text_and_in_default_mode_a_hint(
    client: httpx.AsyncClient, strict: httpx.AsyncClient
) -> None:
    hosted = "AiError: Bad input: Error: oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt', "
    hosted += "Type mismatch of '/messages/0/content', 'string' not in 'array'"
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    for each, is_strict in ((client, False), (strict, True)):
        response = await each.post(RUN_PATH, json=body)
        assert response.status_code == 400
        assert uuid.UUID(response.headers["cf-ai-req-id"])
        (error,) = response.json()["errors"]
        assert response.json() == {"errors": [error], "success": False, "result": {}, "messages": []}
        assert error["code"] == 5006
        assert (error["message"] == hosted) if is_strict else error["message"].startswith(hosted + ". This model reads")


@pytest.mark.parametrize(
    ("body", "status", "code", "text"),
    [
        (b"", 400, 3003, "AiError: Request is missing headers or body: body"),
        (b"  ", 400, 3003, "AiError: Request is missing headers or body: body"),
        (b"{", 400, 5006, "AiError: Bad input: Error: the body is not valid JSON"),
        (b"[" * 5000, 400, 5006, "AiError: Bad input: Error: the body is not valid JSON"),
        (b'{"prompt": NaN}', 400, 5006, "AiError: Bad input: Error: the body is not valid JSON"),
        (b"null", 400, 5006, "AiError: Bad input: Error: oneOf at '/' not met, 0 matches: "),
        (b'{"prompt": "hi", "max_tokens": 0}', 400, 8001, "AiError: Invalid input: max_tokens must be at least 1"),
        (b'{"messages": [1]}', 400, 8001, "AiError: Invalid input: messages/0 must be an object"),
        (b'{"prompt": "hi", "image": [1, 2]}', 400, 8001, "AiError: Invalid input: the parameter 'image'"),
        (b'{"prompt": "hi", "lora": "mine"}', 405, 5005, f"AiError: LoRA unsupported: The model {MODEL} does not"),
        (b'{"prompt": "hi", "min_p": 2}', 400, 5006, "AiError: Bad input: Error: 'min_p' must be a number"),
        (b'{"prompt": "hi", "logit_bias": {"x": 1}}', 400, 5006, "AiError: Bad input: Error: 'logit_bias' must map"),
        (b'{"prompt": "hi", "logit_bias": {"999": 1}}', 400, 5006, "AiError: Bad input: Error: 'logit_bias/999'"),
        (b'{"prompt": "hi", "stop": {}}', 400, 5006, "AiError: Bad input: Error: 'stop' must be"),
    ],
)  # fmt: skip
async def test_bad_bodies(client: httpx.AsyncClient, body: bytes, status: int, code: int, text: str) -> None:
    response = await client.post(RUN_PATH, content=body)
    assert response.status_code == status
    (error,) = response.json()["errors"]
    assert error["code"] == code
    assert error["message"].startswith(text)


async def test_bytes_that_browsers_accept_are_accepted(server: Server, client: httpx.AsyncClient) -> None:
    for body in (b'\xef\xbb\xbf{"prompt": "hi"}', b'{"prompt": "a\\ud83d b"}', b'{"prompt": "\xff"}'):
        response = await client.post(RUN_PATH, content=body)
        assert response.status_code == 200, response.text
    assert "user\na\ufffd b" in prompt_text(server.requests[1])


async def test_unknown_models_are_5007(client: httpx.AsyncClient) -> None:
    response = await client.post(f"/client/v4/accounts/{ACCOUNT}/ai/run/@cf/meta/nope", json={"prompt": "hi"})
    assert response.status_code == 400
    hint = "This server answers to @cf/meta/llama-3.1-8b-instruct-fast."
    message = f"No such model @cf/meta/nope or task. {hint}"
    assert response.json()["errors"] == [{"message": message, "code": 5007}]


async def test_prompts_that_do_not_fit_are_counted_and_refused(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        response = await client.post(RUN_PATH, json={"prompt": "x" * MAX_MODEL_LEN, "raw": True, "stream": stream})
        assert response.status_code == 413
        (error,) = response.json()["errors"]
        assert error["code"] == 5021
        assert re.match(
            rf"AiError: Ai: The estimated number of input and maximum output tokens \({MAX_MODEL_LEN + 256}\) "
            rf"exceeded this model context window limit \({MAX_MODEL_LEN}\)\. .* \([0-9a-f-]{{36}}\)$",
            error["message"],
        )


async def test_large_bodies_are_refused_before_they_are_read(server: Server) -> None:
    async with server.client(max_body_bytes=1000) as client:
        announced = await client.post(RUN_PATH, content=b'{"prompt": "' + b"x" * 1000 + b'"}')

        async def endless() -> Any:
            while True:
                yield b"x" * 300

        unannounced = await client.post(RUN_PATH, content=endless())
    for response in (announced, unannounced):
        assert response.status_code == 413
        assert response.json()["errors"][0]["code"] == 3006


async def test_header_limits(server: Server, client: httpx.AsyncClient) -> None:
    many = [(f"x-{index}", "1") for index in range(200)]
    assert (await client.post(RUN_PATH, json={"prompt": "hi"}, headers=many)).status_code == 400
    large = {"x-large": "y" * 100_000}
    assert (await client.post(RUN_PATH, json={"prompt": "hi"}, headers=large)).status_code == 400
    evil = {"host": "127.0.0.1/client/v4/user?"}
    assert (await client.post(RUN_PATH, json={"prompt": "hi"}, headers=evil)).status_code == 400
    assert server.requests == []


async def test_a_full_queue_is_3040_with_retry_after(server: Server, client: httpx.AsyncClient) -> None:
    server.engine.drain(1)
    response = await client.post(RUN_PATH, json={"prompt": "hi"})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["errors"][0]["message"].startswith(
        "AiError: Capacity temporarily exceeded, please try again."
    )


async def test_a_failed_engine_is_an_error_before_and_inside_a_stream(
    server: Server, client: httpx.AsyncClient
) -> None:
    def break_down(request: Any) -> str:
        server.runner.fail_next_step(RuntimeError("secret"))
        return "Hello"

    server.say = break_down
    broken = await client.post(RUN_PATH, json={"prompt": "hi", "stream": True})
    assert broken.status_code == 200
    frames = frames_of(broken.text)
    assert "".join(frame["response"] for frame in frames) == "H"
    assert frames[-1]["error"]["code"] == 3043
    assert frames[-1]["finish_reason"] == "error"
    after = await client.post(RUN_PATH, json={"prompt": "hi"})
    assert after.status_code == 503
    assert "secret" not in broken.text + after.text
    assert (await client.get("/health")).status_code == 503


async def test_health_ready_and_metrics(client: httpx.AsyncClient) -> None:
    await client.post(RUN_PATH, json={"prompt": "hi", "stream": True})
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json()["status"] == "ready"
    text = (await client.get("/metrics")).text
    label = f'model_name="{MODEL}"'
    for line in (f'tampu:request_success_total{{finished_reason="stop",{label}}} 1.0',
                 f"tampu:num_requests_running{{{label}}} 0.0",
                 f"tampu:generation_tokens_total{{{label}}} 13.0",
                 f"tampu:time_to_first_token_seconds_count{{{label}}} 1.0"):  # fmt: skip
        assert line in text
    assert "tampu:inter_token_latency_seconds_bucket" in text
    assert "tampu:prefix_cache_queries_total" in text


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot(server: Server, stream: bool) -> None:
    server.say = lambda request: "x" * 3000
    server.runner.step_delay_s = 0.002
    app = create_app(server.services, ServerConfig())
    body = orjson.dumps({"prompt": "hi", "stream": stream, "max_tokens": 3000})
    arrived = asyncio.Event()
    gone = asyncio.Event()
    inbox = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        arrived.set()

    scope = {"type": "http", "method": "POST", "path": RUN_PATH, "raw_path": RUN_PATH.encode(), "query_string": b"",
             "headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http", "root_path": "",
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8900)}  # fmt: skip
    task = asyncio.ensure_future(app(scope, receive, send))
    await eventually(lambda: server.runner.step_log)
    if stream:
        await arrived.wait()
    gone.set()
    await asyncio.wait_for(task, 5)
    num_steps = len(server.runner.step_log)
    await eventually(lambda: server.engine.stats().num_running == 0)
    assert len(server.runner.step_log) <= num_steps + 2
    assert server.engine.stats().aborts_total == 1
    assert server.generator.num_open_requests == 0
