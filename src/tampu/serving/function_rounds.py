"""Embedded functions: the model calls, the sandbox runs, the result goes back, until there is a final text.

What the model says is the answer, in every round, and it is passed on as it comes: what can still become a call is held
back by the parser below, and calls are no text. Between the texts of two rounds stands an empty line. Tools of the
client are never run here: a round that calls one ends the generation with that call.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.core.errors import ContextLengthError, InvalidRequestError
from tampu.core.output import FinishReason, Usage
from tampu.serving.answers import Answer, fold
from tampu.serving.events import Event, Finished, TextDelta, ToolCallDelta, whole_call
from tampu.serving.requests import GenerateRequest, ToolChoice

MAX_ROUNDS = 5
MAX_FUNCTIONS = 64
MAX_CODE_CHARS = 64_000
_BETWEEN_ROUNDS = "\n\n"


class FunctionSandbox(Protocol):
    """Runs JavaScript where it can do no harm (`tampu.sandbox`)."""

    async def describe(self, code: str, name: str = "") -> ToolSpec:
        """The tool that a function is for the model; reads the code, never runs it. Raises InvalidRequestError with the
        field "code" when there is too much to read."""

    async def call(self, code: str, arguments: Mapping[str, Any], name: str = "") -> str:
        """Call the function with one object; the JSON text of what it returned, or of `{"error": ...}`. Never raises
        for what the code does. Raises OverloadedError when too many calls wait."""


class PlainGenerator(Protocol):
    """What runs one round."""

    def start(self) -> None:
        """Begin to serve."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events as they come."""

    async def complete(self, request: GenerateRequest) -> list[Answer]:
        """The same events, folded."""


@dataclass(slots=True)
class _Round:
    """What one round was asked with, and what it brought."""

    request: GenerateRequest
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, event: Event) -> Event | None:
        """Note an event; what of it is to be passed on at once."""
        match event:
            case TextDelta():
                self.texts.append(event.text)
                return event
            case ToolCallDelta(call=ToolCall() as call):
                self.calls.append(call)
            case ToolCallDelta(unfinished=text) if text:  # no call, so it is text
                self.texts.append(text)
                return TextDelta(text)
            case Finished():
                self.finished = event
        return None


class FunctionRounds:
    """A generator that also serves requests with `functions`; all others pass through untouched."""

    def __init__(self, generator: PlainGenerator, sandbox: FunctionSandbox) -> None:
        self._generator = generator
        self._sandbox = sandbox

    def start(self) -> None:
        """Begin to serve. Idempotent."""
        self._generator.start()

    async def complete(self, request: GenerateRequest) -> list[Answer]:
        """One answer per choice, by index."""
        async with aclosing(self.stream(request)) as events:
            return await fold(events)

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events as they come; `aclose()` aborts what still runs."""
        return self._rounds(request) if request.functions else self._generator.stream(request)

    async def _rounds(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        tools = await self._offered_tools(request)
        code_by_name = {function.name: function.code for function in request.functions}
        if request.n > 1:
            raise InvalidRequestError("n", "'n' must be 1 with functions")
        history = request.messages or (Message("user", request.prompt or ""),)
        functions_run: list[tuple[ToolCall, str]] = []
        usage = Usage()
        has_spoken = is_cut = False
        for number in range(MAX_ROUNDS + 1):
            is_last = number == MAX_ROUNDS
            choice = request.tool_choice if number == 0 else _choice_after_results(request.tool_choice)
            done = _Round(
                replace(
                    request,
                    prompt=None,
                    messages=history,
                    functions=(),
                    tools=tools,
                    tool_choice=ToolChoice("none") if is_last else choice,
                )
            )
            async with aclosing(self._said(done, has_results=number > 0)) as events:
                async for event in events:
                    if has_spoken and len(done.texts) == 1:
                        yield TextDelta(_BETWEEN_ROUNDS)
                    yield event
            assert done.finished is not None, "a stream ends with Finished"
            history = done.request.messages or ()
            has_spoken = has_spoken or bool(done.texts)
            usage += done.finished.usage
            is_cut = is_cut or done.finished.finish_reason is FinishReason.LENGTH
            for_client = [call for call in done.calls if call.name not in code_by_name]
            mine = [call for call in done.calls if call.name in code_by_name and not is_last]
            results = [
                (call, await self._sandbox.call(code_by_name[call.name], call.arguments, call.name)) for call in mine
            ]
            functions_run += results
            if not mine or for_client:
                for event in _last_events(done, for_client, usage, tuple(functions_run), is_cut=is_cut):
                    yield event
                return
            turns = (Message("tool", result, name=call.name, tool_call_id=call.call_id) for call, result in results)
            history = (*history, Message("assistant", "".join(done.texts), tuple(mine)), *turns)

    async def _said(self, done: _Round, *, has_results: bool) -> AsyncGenerator[Event, None]:
        """What of a round is passed on at once. Results of functions that do not fit into the prompt are replaced."""
        shortened: set[int] = set()
        while True:
            try:
                async with aclosing(self._generator.stream(done.request)) as events:
                    async for event in events:
                        passed_on = done.take(event)
                        if passed_on is not None:
                            yield passed_on
                return
            except ContextLengthError as error:  # comes before any event
                if not has_results:
                    raise
                history = _shortened(done.request.messages or (), error, shortened)
                done.request = replace(done.request, messages=history)

    async def _offered_tools(self, request: GenerateRequest) -> tuple[ToolSpec, ...]:
        """The client's tools and the functions as tools.

        Raises:
            InvalidRequestError: for a function without name or code, one too long to read, and a name used twice.
        """
        if len(request.functions) > MAX_FUNCTIONS:
            raise InvalidRequestError("functions", f"'functions' must hold at most {MAX_FUNCTIONS} functions")
        tools = list(request.tools)
        for index, function in enumerate(request.functions):
            where = f"functions/{index}"
            if not function.name or any(tool.name == function.name for tool in tools):
                raise InvalidRequestError(
                    f"{where}/name",
                    f"'{where}/name' is empty or repeats {function.name!r}",
                    hint="Give it its own name.",
                )
            if not function.code.strip() or len(function.code) > MAX_CODE_CHARS:
                raise InvalidRequestError(
                    f"{where}/code", f"'{where}/code' must hold a function of at most {MAX_CODE_CHARS} characters"
                )
            try:
                tool = await self._sandbox.describe(function.code, function.name)
            except InvalidRequestError as error:
                field = f"{where}/{error.field}"
                raise InvalidRequestError(field, f"'{field}': {error}", hint=error.hint) from None
            tools.append(replace(tool, place=f"{where}/code"))
        return tuple(tools)


def _choice_after_results(choice: ToolChoice) -> ToolChoice:
    """A demanded call was made; from then on the model decides, or no answer would ever come."""
    return choice if choice.mode == "none" else ToolChoice()


def _shortened(history: tuple[Message, ...], error: ContextLengthError, shortened: set[int]) -> tuple[Message, ...]:
    """The conversation with the longest result of the last round replaced by an error that the model can read, and its
    place noted in `shortened`.

    Raises:
        ContextLengthError: the same, about the functions, when no result is left that is worth replacing.
    """
    last_call = max(index for index, message in enumerate(history) if message.role == "assistant")
    left = [index for index in range(last_call + 1, len(history)) if index not in shortened]
    longest = max(left, key=lambda index: len(history[index].content), default=last_call)
    turn = history[longest]
    num_missing = error.num_prompt_tokens + error.max_tokens - error.max_model_len
    told = f"The result is too long: {len(turn.content)} characters, {num_missing} tokens more than fit. Return less."
    content = json.dumps({"error": told})
    if not left or len(content) >= len(turn.content):
        error.field = "functions"
        error.hint = (
            f"With the calls and results of the functions the prompt has {error.num_prompt_tokens} tokens, and "
            f"max_tokens is {error.max_tokens}: let the functions return less, or lower max_tokens."
        )
        raise error
    shortened.add(longest)
    return (*history[:longest], replace(turn, content=content), *history[longest + 1 :])


def _last_events(
    done: _Round,
    for_client: list[ToolCall],
    usage: Usage,
    functions_run: tuple[tuple[ToolCall, str], ...],
    *,
    is_cut: bool,
) -> list[Event]:
    """The events of the round that ends the generation. `is_cut`: `max_tokens` cut something in any of the rounds."""
    assert done.finished is not None
    events: list[Event] = [delta for index, call in enumerate(for_client) for delta in whole_call(call, index)]
    reason = done.finished.finish_reason
    if reason is FinishReason.TOOL_CALLS and not for_client:
        reason = FinishReason.STOP
    if is_cut and reason in (FinishReason.STOP, FinishReason.TOOL_CALLS):
        reason = FinishReason.LENGTH
    events.append(replace(done.finished, finish_reason=reason, usage=usage, functions_run=functions_run))
    return events
