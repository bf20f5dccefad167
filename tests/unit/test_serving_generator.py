"""The generator over a fake engine that a test steers token by token: cuts, stops, aborts, errors, choices, tools."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_server import TOKENIZER, eventually
from tampu.api.config import ServerConfig
from tampu.api.native_answer import result_body
from tampu.api.openai_answer import AnswerHead, chat_body
from tampu.api.openai_responses_stream import ResponseWriter
from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.core.errors import (
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    RequestAbortedError,
)
from tampu.core.output import FinishReason, RequestOutput, Usage
from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.stats import EngineHealth, EngineStats
from tampu.core.step import TokenLogprobs
from tampu.serving.answers import Answer, fold, total_usage
from tampu.serving.codec import ChatCodec
from tampu.serving.events import Event, Finished, TextDelta, ToolCallDelta
from tampu.serving.generator import Generator, derive_seed
from tampu.serving.metrics import Metrics
from tampu.serving.requests import GenerateRequest, ToolChoice
from tampu.text.chat_template import chat_template

Batches = list[list[RequestOutput]]


class FakeEngine:
    """Delivers what `play` makes of each submitted request, from the event loop's own thread."""

    max_model_len = 1000

    def __init__(self, play: Callable[[Request], Batches]) -> None:
        self.play = play
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self.refuse_from: int | None = None
        self._deliver: Callable[[list[RequestOutput]], None] = lambda outputs: None

    def start(self, deliver: Callable[[list[RequestOutput]], None]) -> None:
        self._deliver = deliver

    def submit(self, request: Request) -> None:
        if self.refuse_from is not None and len(self.requests) >= self.refuse_from:
            raise OverloadedError("full")
        self.requests.append(request)
        for batch in self.play(request):
            self._deliver(batch)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return EngineStats()

    def health(self) -> EngineHealth:
        return EngineHealth(is_alive=True, is_ready=True)


def says(
    data: bytes, cuts: Iterable[int] = (), reason: FinishReason = FinishReason.STOP
) -> Callable[[Request], Batches]:
    """A reply of byte tokens, delivered in pieces."""

    def play(request: Request) -> Batches:
        marks = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        pieces = [data[a:b] for a, b in itertools.pairwise(marks)] or [b""]
        batches = [[RequestOutput(request.request_id, tuple(piece), num_cached_tokens=3)] for piece in pieces[:-1]]
        end = (257,) if reason is FinishReason.STOP else ()
        last = RequestOutput(request.request_id, (*pieces[-1], *end), finish_reason=reason, num_cached_tokens=3)
        return [*batches, [last]]

    return play


def generator_over(engine: FakeEngine) -> Generator:
    generator = Generator(engine, ChatCodec(TOKENIZER, chat_template("chatml")), Metrics())
    generator.start()
    return generator


def request(**changes: object) -> GenerateRequest:
    values: dict[str, object] = {
        "model": "m",
        "sampling": SamplingParams(max_tokens=100),
        "prompt": "hi",
        "is_raw": True,
    }
    return GenerateRequest(**{**values, **changes})  # type: ignore[arg-type]


async def events_of(engine: FakeEngine, wanted: GenerateRequest) -> list[Event]:
    generator = generator_over(engine)
    async with aclosing(generator.stream(wanted)) as stream:
        events = [event async for event in stream]
    assert generator.num_open_requests == 0
    return events


def answer_of(engine: FakeEngine, wanted: GenerateRequest) -> Answer:
    (answer,) = asyncio.run(generator_over(engine).complete(wanted))
    return answer


@settings(max_examples=120, deadline=None)
@given(
    st.text(max_size=20),
    st.lists(st.integers(0, 80), max_size=12),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_every_cut_gives_the_same_text(text: str, cuts: list[int], stops: list[str]) -> None:
    data = text.encode("utf-8", "replace")
    whole = data.decode()
    ends = sorted((whole.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in whole)
    expected = whole[: ends[0][0] + ends[0][1]] if ends else whole
    wanted = request(stop=tuple(stops))
    events = asyncio.run(events_of(FakeEngine(says(data, cuts)), wanted))
    *deltas, last = events
    assert all(isinstance(delta, TextDelta) and delta.text for delta in deltas)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == expected
    assert isinstance(last, Finished)
    assert last.stop_match == (ends[0][2] if ends else None)
    assert answer_of(FakeEngine(says(data, cuts)), wanted).text == expected


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=12), st.lists(st.integers(0, 12), max_size=6))
def test_broken_utf8_becomes_replacement_characters_wherever_it_is_cut(data: bytes, cuts: list[int]) -> None:
    answer = answer_of(FakeEngine(says(data, cuts, FinishReason.LENGTH)), request())
    assert answer.text == data.decode("utf-8", "replace")
    assert answer.usage == Usage(2, len(data), 3)


async def test_a_stop_match_aborts_in_the_engine_and_counts_what_was_generated() -> None:
    engine = FakeEngine(says(b"abcXYdef", range(9)))
    *_, last = await events_of(engine, request(stop=("XY",)))
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == 5
    assert engine.aborted == [engine.requests[0].request_id]


async def test_closing_the_stream_aborts_every_open_choice() -> None:
    engine = FakeEngine(lambda request: [[RequestOutput(request.request_id, (97,))]])
    generator = generator_over(engine)
    stream = generator.stream(request(n=3))
    assert await anext(stream) == TextDelta("a", 0)
    await stream.aclose()
    assert sorted(engine.aborted) == sorted(each.request_id for each in engine.requests)
    assert generator.num_open_requests == 0


async def test_cancelling_a_plain_request_aborts_it() -> None:
    engine = FakeEngine(lambda request: [])
    generator = generator_over(engine)
    task = asyncio.ensure_future(generator.complete(request()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.aborted == [engine.requests[0].request_id]
    assert generator.num_open_requests == 0


async def test_n_choices_are_n_requests_with_their_own_seeds_and_one_prompt_count() -> None:
    engine = FakeEngine(says(b"ok"))
    answers = await generator_over(engine).complete(request(n=3, seed=7))
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert [each.seed for each in engine.requests] == [derive_seed(7, index) for index in range(3)]
    assert engine.requests[0].seed == 7
    assert len({each.seed for each in engine.requests}) == 3
    assert total_usage(answers) == Usage(2, 9, 3)


async def test_a_refused_choice_ends_the_others() -> None:
    engine = FakeEngine(lambda request: [])
    engine.refuse_from = 1
    generator = generator_over(engine)
    with pytest.raises(OverloadedError):
        await generator.complete(request(n=3))
    assert engine.aborted == [engine.requests[0].request_id]
    assert generator.num_open_requests == 0


async def test_an_engine_error_reaches_the_caller() -> None:
    failure = EngineDeadError("down")
    engine = FakeEngine(
        lambda request: [[RequestOutput(request.request_id, finish_reason=FinishReason.ERROR, error=failure)]]
    )
    with pytest.raises(EngineDeadError):
        await generator_over(engine).complete(request())


async def test_an_abort_nobody_here_asked_for_is_an_error() -> None:
    engine = FakeEngine(lambda request: [[RequestOutput(request.request_id, finish_reason=FinishReason.ABORT)]])
    with pytest.raises(RequestAbortedError):
        await generator_over(engine).complete(request())


async def test_the_context_is_counted_before_anything_is_sent() -> None:
    engine = FakeEngine(says(b"ok"))
    with pytest.raises(ContextLengthError) as caught:
        await generator_over(engine).complete(request(prompt="x" * 901))
    assert (caught.value.num_prompt_tokens, caught.value.max_tokens) == (901, 100)
    assert engine.requests == []
    assert (await generator_over(engine).complete(request(prompt="x" * 900)))[0].text == "ok"
    with pytest.raises(InvalidRequestError):
        await generator_over(engine).complete(request(prompt=""))


async def test_a_long_prompt_is_encoded_off_the_event_loop() -> None:
    engine = FakeEngine(says(b"ok"))
    engine.max_model_len = 100_000
    answers = await generator_over(engine).complete(request(prompt="y" * 5000))
    assert answers[0].usage.prompt_tokens == 5000


async def test_echo_token_prompts_and_ignore_eos() -> None:
    engine = FakeEngine(says(b"ok"))
    answers = await generator_over(engine).complete(
        request(prompt=None, prompt_token_ids=(104, 105), echo=True, ignore_eos=True)
    )
    assert answers[0].text == "hiok"
    assert engine.requests[0].prompt_token_ids == (104, 105)
    assert engine.requests[0].sampling_params.stop_token_ids == ()


async def test_logprobs_follow_their_text_and_leave_the_end_mark_out() -> None:
    def play(request: Request) -> Batches:
        ids = (*b"h\xc3\xa9", 257)
        logprobs = tuple(TokenLogprobs(-float(index), ((token, -0.5),)) for index, token in enumerate(ids))
        return [[RequestOutput(request.request_id, ids, logprobs, FinishReason.STOP)]]

    answer = (await generator_over(FakeEngine(play)).complete(request()))[0]
    assert [each.token_bytes for each in answer.logprobs] == [b"h", b"\xc3", b"\xa9"]
    assert [each.logprob for each in answer.logprobs] == [0.0, -1.0, -2.0]
    assert answer.logprobs[0].top == (("h", b"h", -0.5),)


TOOL = ToolSpec("f", "d", {"type": "object", "properties": {"x": {"type": "integer"}}})
CALLS = b'Let me see. {"name": "f", "parameters": {"x": 1}}; {"name": "f", "parameters": {"x": 2}}'


def chat(**changes: object) -> GenerateRequest:
    return request(prompt=None, is_raw=False, messages=(Message("user", "hi"),), tools=(TOOL,), **changes)


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_tool_calls_come_as_events_with_ids(step: int) -> None:
    events = await events_of(FakeEngine(says(CALLS, range(0, len(CALLS), step))), chat())
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [(call.call_index, call.name, call.arguments_json) for call in calls] == [
        (0, "f", ""),
        (0, None, '{"x": 1}'),
        (1, "f", ""),
        (1, None, '{"x": 2}'),
    ]
    ids = [call.call_id for call in calls[::2]]
    assert [call.call.call_id for call in calls if call.call is not None] == ids
    assert len(set(ids)) == 2
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text.strip() == "Let me see."
    assert isinstance(events[-1], Finished)
    assert events[-1].finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_logprobs_beside_calls_are_those_of_the_text(step: int) -> None:
    said = b'Look: {"name": "f", "parameters": {"x": 1}} done'

    def play(request: Request) -> Batches:
        ((whole,),) = says(said)(request)
        logprobs = tuple(TokenLogprobs(-0.5, ()) for _ in whole.new_token_ids)
        parts = [(whole.new_token_ids[a : a + step], logprobs[a : a + step]) for a in range(0, len(said) + 1, step)]
        outputs = [[RequestOutput(request.request_id, ids, some)] for ids, some in parts[:-1]]
        return [*outputs, [RequestOutput(request.request_id, *parts[-1], FinishReason.STOP)]]

    (answer,) = await generator_over(FakeEngine(play)).complete(chat())
    assert len(answer.tool_calls) == 1
    assert answer.text.split() == ["Look:", "done"]
    assert b"".join(each.token_bytes for each in answer.logprobs).split() == [b"Look:", b"done"]


async def test_a_stop_string_does_not_end_a_demanded_call() -> None:
    said = b'{"name": "f", "parameters": {"x": 1}}'
    demanded = chat(stop=("x",), tool_choice=ToolChoice("required"))
    (answer,) = await generator_over(FakeEngine(says(said))).complete(demanded)
    assert [call.arguments_json for call in answer.tool_calls] == ['{"x": 1}']
    (free,) = await generator_over(FakeEngine(says(said))).complete(chat(stop=("x",)))
    assert free.stop_match == "x"
    assert not free.tool_calls


@pytest.mark.parametrize(
    "parts",
    [
        {"messages": (Message("user", "x" * 3000),)},
        {"tools": (ToolSpec("f", "x" * 3000, {}),)},
        {"tools": (ToolSpec("f", "", {"enum": [str(i) for i in range(2000)]}),)},
        {"tools": (ToolSpec("f", "", {"properties": {"x" * 3000: {}}}),)},
        {"messages": (Message("assistant", "", (ToolCall("f", {"a": ["x" * 3000]}),)),)},
        {"prompt": "x" * 3000, "is_raw": True, "messages": None},
    ],
)
async def test_long_prompts_of_every_kind_are_tokenised_off_the_event_loop(
    parts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    encode = ChatCodec.encode

    def watched(self: ChatCodec, wanted: GenerateRequest) -> tuple[int, ...]:
        threads.append(threading.current_thread() is threading.main_thread())
        return encode(self, wanted)

    monkeypatch.setattr(ChatCodec, "encode", watched)
    generator = generator_over(FakeEngine(says(b"hi")))
    await generator.complete(replace(chat(), tools=()))
    with pytest.raises(ContextLengthError):
        await generator.complete(replace(chat(), **{"tools": (), **parts}))  # type: ignore[arg-type]
    assert threads == [True, False]


class Promise:
    """A constraint that forbids nothing and promises calls between two numbers of tokens."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def new_constraint(self, max_tokens: int) -> Promise:
        return self

    def next_mask(self) -> bytes | None:
        return None

    def accept(self, token_id: int) -> None:
        """Nothing changes."""

    def promises_call(self, num_tokens: int) -> bool:
        return self.start <= num_tokens < self.end


def promise(monkeypatch: pytest.MonkeyPatch, start: int, end: int) -> None:
    async def constraint(self: ChatCodec, request: GenerateRequest) -> Promise:
        return Promise(start, end)

    monkeypatch.setattr(ChatCodec, "constraint", constraint)


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_a_promised_call_comes_in_pieces_however_tokens_are_bundled(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first call is promised, from the token on that ends its name."""
    named = CALLS.index(b'"f"') + 3
    promise(monkeypatch, named, named + 1)
    cuts = range(0, len(CALLS), step)
    events = await events_of(FakeEngine(says(CALLS, cuts)), chat())
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    fragments = [call.arguments_json for call in calls if call.call_index == 0 and call.arguments_json]
    assert "".join(fragments) == '{"x": 1}'
    assert len(fragments) == len('{"x": 1}')  # one for each token
    whole = [call for call in calls if call.call is not None]
    assert [call.arguments_json for call in whole] == ["", '{"x": 2}']
    assert calls[0].call_id == whole[0].call.call_id if whole[0].call else None
    (answer,) = await fold(again(events))
    assert [call.arguments_json for call in answer.tool_calls] == ['{"x": 1}', '{"x": 2}']
    stopped = await events_of(FakeEngine(says(CALLS, cuts)), chat(stop=("never",)))
    assert [call.arguments_json for call in stopped if isinstance(call, ToolCallDelta) and call.call] == [
        '{"x": 1}',
        '{"x": 2}',
    ]


async def again(events: list[Event]) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_promise_that_was_not_kept_leaves_a_call_with_unfinished_arguments(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, 0, 1000)
    data = CALLS[:-3]
    engine = FakeEngine(says(data, range(len(data)), FinishReason.LENGTH))
    events = await events_of(engine, chat(tool_choice=ToolChoice(choice)))
    (answer,) = await fold(again(events))
    assert [call.arguments for call in answer.tool_calls] == [{"x": 1}]
    (unfinished,) = answer.unfinished_calls
    assert (unfinished.name, unfinished.arguments_json) == ("f", '{"x": ')
    assert unfinished.text == '; {"name": "f", "parameters": {"x": '
    assert answer.text.strip() == "Let me see."
    assert answer.finish_reason is FinishReason.LENGTH
    head = AnswerHead("id", 1, "m")
    (told,) = chat_body(head, [answer], has_logprobs=False, uses_functions=False)["choices"]
    assert [call["function"]["arguments"] for call in told["message"]["tool_calls"]] == ['{"x": 1}', '{"x": ']
    assert told["message"]["tool_calls"][1]["id"] == unfinished.call_id
    writer = ResponseWriter(head, {})
    for event in events:
        writer.take(event)
    assert [(item["type"], item["status"]) for item in writer.body["output"]] == [
        ("message", "completed"),
        ("function_call", "completed"),
        ("function_call", "incomplete"),
    ]
    native = result_body(answer, chat(), ServerConfig())
    assert native["response"].endswith('; {"name": "f", "parameters": {"x": ')
    assert native["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]


async def test_a_single_call_ends_the_choice_when_parallel_calls_are_off() -> None:
    engine = FakeEngine(says(CALLS, range(len(CALLS))))
    events = await events_of(engine, chat(parallel_tool_calls=False))
    assert [event.call.arguments for event in events if isinstance(event, ToolCallDelta) and event.call] == [{"x": 1}]
    assert engine.aborted == [engine.requests[0].request_id]


async def test_without_tools_or_with_choice_none_a_call_is_text() -> None:
    answer = (await generator_over(FakeEngine(says(CALLS))).complete(chat(tool_choice=ToolChoice("none"))))[0]
    assert answer.text == CALLS.decode()
    assert (answer.tool_calls, answer.finish_reason) == ((), FinishReason.STOP)


async def test_a_cut_call_is_text_and_says_length() -> None:
    engine = FakeEngine(says(CALLS[:40], reason=FinishReason.LENGTH))
    answer = (await generator_over(engine).complete(chat()))[0]
    assert answer.text == CALLS[:40].decode()
    assert answer.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("end", [50, 60, 70])
async def test_a_later_demanded_call_that_was_cut_is_dropped(step: int, end: int) -> None:
    data = CALLS[CALLS.index(b"{") :][:end]
    engine = FakeEngine(says(data, range(0, len(data), step), reason=FinishReason.LENGTH))
    answer = (await generator_over(engine).complete(chat(tool_choice=ToolChoice("required"))))[0]
    assert (answer.text, [call.arguments for call in answer.tool_calls]) == ("", [{"x": 1}])
    assert answer.finish_reason is FinishReason.LENGTH


async def test_one_step_wakes_the_loop_once_for_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(lambda request: [])
    generator = generator_over(engine)
    tasks = [asyncio.ensure_future(generator.complete(request())) for _ in range(10)]
    await eventually(lambda: len(engine.requests) == 10)
    loop = asyncio.get_running_loop()
    wake_ups = []
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call, *args: wake_ups.append((call, args)))
    engine._deliver(
        [RequestOutput(each.request_id, (97, 257), finish_reason=FinishReason.STOP) for each in engine.requests]
    )
    assert len(wake_ups) == 1
    monkeypatch.undo()
    for call, args in wake_ups:
        call(*args)
    assert [answers[0].text for answers in await asyncio.gather(*tasks)] == ["a"] * 10


async def test_fold_of_nothing_is_nothing() -> None:
    async def nothing() -> object:
        for event in ():
            yield event

    assert await fold(nothing()) == []  # type: ignore[arg-type]
