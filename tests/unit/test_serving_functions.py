"""Embedded functions: the rounds of calling them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import pytest

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.core.errors import ContextLengthError, InvalidRequestError
from tampu.core.output import FinishReason, Usage
from tampu.core.sampling_params import SamplingParams
from tampu.serving.answers import Answer, fold
from tampu.serving.events import Event, Finished, TextDelta, ToolCallDelta, whole_call
from tampu.serving.function_rounds import MAX_ROUNDS, FunctionRounds
from tampu.serving.requests import FunctionSpec, GenerateRequest, ToolChoice


class FakeSandbox:
    """Adds its arguments; remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def describe(self, code: str, name: str = "") -> ToolSpec:
        return ToolSpec(name, code)

    async def call(self, code: str, arguments: Mapping[str, Any], name: str = "") -> str:
        self.calls.append((code, dict(arguments)))
        return json.dumps(sum(arguments.values()))


class FakeGenerator:
    """Says what `play` makes of each round."""

    def __init__(self, play: Callable[[GenerateRequest], list[Event]]) -> None:
        self.play = play
        self.seen: list[GenerateRequest] = []

    def start(self) -> None:
        """Nothing to start."""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.seen.append(request)
        for event in self.play(request):
            yield event

    async def complete(self, request: GenerateRequest) -> list[Answer]:
        return await fold(self.stream(request))


def call(name: str, index: int = 0, **arguments: Any) -> tuple[ToolCallDelta, ToolCallDelta]:
    return whole_call(ToolCall(name, arguments, f"id-{index}"), index)


def finished(reason: FinishReason) -> Finished:
    return Finished(reason, Usage(10, 5, 2))


ADD = FunctionSpec("add", "({a, b}) => a + b")
CLIENT_TOOL = ToolSpec("ask", "d", {"type": "object"})


def request(**changes: Any) -> GenerateRequest:
    values: dict[str, Any] = {"model": "m", "sampling": SamplingParams(), "messages": (Message("user", "2+3?"),),
                              "functions": (ADD,)}  # fmt: skip
    return GenerateRequest(**{**values, **changes})


def once_then_text(seen: GenerateRequest) -> list[Event]:
    if seen.messages and seen.messages[-1].role == "tool":
        return [TextDelta("It is "), TextDelta(seen.messages[-1].content), finished(FinishReason.STOP)]
    return [TextDelta("Let me "), TextDelta("add."), *call("add", a=2, b=3), finished(FinishReason.TOOL_CALLS)]


async def test_a_call_runs_and_its_result_goes_back() -> None:
    generator, sandbox = FakeGenerator(once_then_text), FakeSandbox()
    (answer,) = await FunctionRounds(generator, sandbox).complete(request())
    assert answer.text == "Let me add.\n\nIt is 5"
    assert answer.finish_reason is FinishReason.STOP
    assert answer.usage == Usage(20, 10, 4)
    assert [(made.name, result) for made, result in answer.functions_run] == [("add", "5")]
    assert sandbox.calls == [(ADD.code, {"a": 2, "b": 3})]
    first, second = generator.seen
    assert [tool.name for tool in first.tools] == ["add"]
    assert first.functions == ()
    assert second.messages is not None
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[1].content == "Let me add."
    assert second.messages[1].tool_calls[0].arguments == {"a": 2, "b": 3}
    assert second.messages[2] == Message("tool", "5", name="add", tool_call_id="id-0")


async def test_text_is_passed_on_before_the_round_is_over() -> None:
    order: list[str] = []

    class Watched(FakeGenerator):
        async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
            async for event in super().stream(request):
                order.append(f"made {type(event).__name__}")
                yield event

    rounds = FunctionRounds(Watched(once_then_text), FakeSandbox())
    async for event in rounds.stream(request()):
        order += [event.text if isinstance(event, TextDelta) else type(event).__name__]
    made = "made TextDelta"
    assert order == [
        *(made, "Let me ", made, "add.", "made ToolCallDelta", "made ToolCallDelta", "made Finished"),
        *(made, "\n\n", "It is ", made, "5", "made Finished", "Finished"),
    ]


async def test_a_call_that_was_never_finished_is_text() -> None:
    generator = FakeGenerator(
        lambda seen: [
            ToolCallDelta(0, "id-0", "add"),
            ToolCallDelta(0, arguments_json='{"a'),
            ToolCallDelta(0, unfinished='{"name": "add", "parameters": {"a'),
            finished(FinishReason.LENGTH),
        ]
    )
    (answer,) = await FunctionRounds(generator, FakeSandbox()).complete(request())
    assert (answer.text, answer.tool_calls) == ('{"name": "add", "parameters": {"a', ())
    assert answer.finish_reason is FinishReason.LENGTH


async def test_it_stops_calling_after_five_rounds() -> None:
    def insist(seen: GenerateRequest) -> list[Event]:
        if seen.tool_choice.mode == "none":
            return [TextDelta("enough"), finished(FinishReason.STOP)]
        return [*call("add", a=1, b=1), finished(FinishReason.TOOL_CALLS)]

    generator, sandbox = FakeGenerator(insist), FakeSandbox()
    (answer,) = await FunctionRounds(generator, sandbox).complete(request())
    assert answer.text == "enough"
    assert len(sandbox.calls) == len(answer.functions_run) == MAX_ROUNDS == 5
    assert len(generator.seen) == 6


async def test_a_demanded_call_is_demanded_once() -> None:
    generator = FakeGenerator(once_then_text)
    await FunctionRounds(generator, FakeSandbox()).complete(request(tool_choice=ToolChoice("named", ("add",))))
    assert [seen.tool_choice.mode for seen in generator.seen] == ["named", "auto"]


async def test_the_clients_own_tools_are_returned_not_run() -> None:
    def mixed(seen: GenerateRequest) -> list[Event]:
        return [*call("add", a=1, b=2), *call("ask", 1, q="?"), finished(FinishReason.TOOL_CALLS)]

    sandbox = FakeSandbox()
    (answer,) = await FunctionRounds(FakeGenerator(mixed), sandbox).complete(request(tools=(CLIENT_TOOL,)))
    assert [made.name for made in answer.tool_calls] == ["ask"]
    assert answer.finish_reason is FinishReason.TOOL_CALLS
    assert [made.name for made, _ in answer.functions_run] == ["add"]


async def test_requests_without_functions_pass_through() -> None:
    generator = FakeGenerator(lambda seen: [TextDelta("hi"), finished(FinishReason.STOP)])
    (answer,) = await FunctionRounds(generator, FakeSandbox()).complete(request(functions=()))
    assert answer.text == "hi"
    assert generator.seen[0].tools == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"functions": (FunctionSpec("", "x"),)},
        {"functions": (FunctionSpec("f", " "),)},
        {"functions": (ADD, ADD)},
        {"tools": (ToolSpec("add"),)},
        {"n": 2},
        {"functions": (ADD,) * 100},
    ],
)
async def test_what_cannot_be_served_is_refused(changes: dict[str, Any]) -> None:
    generator = FakeGenerator(once_then_text)
    with pytest.raises(InvalidRequestError):
        await FunctionRounds(generator, FakeSandbox()).complete(request(**changes))
    assert generator.seen == []


async def test_a_function_too_long_to_describe_is_named() -> None:
    class Reader(FakeSandbox):
        async def describe(self, code: str, name: str = "") -> ToolSpec:
            if name == "long":
                raise InvalidRequestError("code", "the comment is too long", hint="Shorten it.")
            return await super().describe(code, name)

    functions = (ADD, FunctionSpec("long", "/** ... */ o => 1"))
    with pytest.raises(InvalidRequestError) as caught:
        await FunctionRounds(FakeGenerator(once_then_text), Reader()).complete(request(functions=functions))
    assert (caught.value.field, str(caught.value), caught.value.hint) == (
        "functions/1/code",
        "'functions/1/code': the comment is too long",
        "Shorten it.",
    )


async def test_a_call_that_was_closed_early_shows_in_the_end() -> None:
    def cut_then_text(seen: GenerateRequest) -> list[Event]:
        said = once_then_text(seen)
        return said if isinstance(said[-2], TextDelta) else [*said[:-1], finished(FinishReason.LENGTH)]

    rounds = FunctionRounds(FakeGenerator(cut_then_text), FakeSandbox())
    (answer,) = await rounds.complete(request())
    assert answer.finish_reason is FinishReason.LENGTH
    assert len(answer.functions_run) == 1
    *_, last = [event async for event in rounds.stream(request())]
    assert isinstance(last, Finished)
    assert last.finish_reason is FinishReason.LENGTH


class WideSandbox(FakeSandbox):
    """Returns as many letters as its argument says."""

    async def call(self, code: str, arguments: Mapping[str, Any], name: str = "") -> str:
        return json.dumps("x" * arguments["a"])


def bounded(limit: int, *lengths: int) -> FakeGenerator:
    """Calls `add` once for each length, then repeats the results; a prompt of more letters than `limit` is too long."""

    def play(seen: GenerateRequest) -> list[Event]:
        results = [message.content for message in seen.messages or () if message.role == "tool"]
        if (num_tokens := sum(map(len, results))) > limit:
            raise ContextLengthError(num_prompt_tokens=num_tokens, max_tokens=10, max_model_len=limit + 10)
        if results:
            return [TextDelta(" ".join(results)), finished(FinishReason.STOP)]
        calls = [delta for index, length in enumerate(lengths) for delta in call("add", index, a=length)]
        return [*calls, finished(FinishReason.TOOL_CALLS)]

    return FakeGenerator(play)


async def test_a_result_too_long_for_the_context_is_an_error_the_model_sees() -> None:
    (answer,) = await FunctionRounds(bounded(300, 500, 100), WideSandbox()).complete(request())
    told = "The result is too long: 502 characters, 304 tokens more than fit. Return less."
    assert answer.text == f'{{"error": "{told}"}} "{"x" * 100}"'
    assert answer.finish_reason is FinishReason.STOP


async def test_where_not_even_that_fits_the_error_is_about_the_functions() -> None:
    with pytest.raises(ContextLengthError) as caught:
        await FunctionRounds(bounded(50, 500), WideSandbox()).complete(request())
    assert caught.value.field == "functions"
    assert caught.value.hint.startswith("With the calls and results of the functions the prompt has ")


async def test_a_prompt_too_long_from_the_start_is_the_clients() -> None:
    def refuse(seen: GenerateRequest) -> list[Event]:
        raise ContextLengthError(num_prompt_tokens=9, max_tokens=1, max_model_len=5)

    with pytest.raises(ContextLengthError) as caught:
        await FunctionRounds(FakeGenerator(refuse), FakeSandbox()).complete(request())
    assert caught.value.field == "prompt"
