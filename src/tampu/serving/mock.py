"""A language model without a model, for other people's tests: the same requests and events, made up or scripted.

Deterministic: the same request to the same script state gives the same answer. Imports neither engine nor tokenizer,
so that a mock server starts at once. Its tokens are words with the blank before them; its counts are of those.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from tampu.core.chat import ToolCall
from tampu.core.errors import ContextLengthError
from tampu.core.output import FinishReason, Usage
from tampu.core.stats import EngineHealth, EngineStats
from tampu.serving.answers import Answer, fold
from tampu.serving.events import Event, Finished, TextDelta, ToolCallDelta, arguments_text
from tampu.serving.example_value import example_value
from tampu.serving.faults import StreamCut
from tampu.serving.metrics import Metrics
from tampu.serving.mock_embedder import MockEmbedder
from tampu.serving.mock_script import Cue, Script, last_text
from tampu.serving.model_card import ModelCard
from tampu.serving.requests import GenerateRequest
from tampu.serving.services import Services
from tampu.text.stop_strings import StopStringMatcher

MOCK_CONTEXT_LEN = 128_000
_WORD = re.compile(r"\s*\S{1,12}|\s+\Z")
_FRAGMENT = re.compile(r".{1,5}", re.DOTALL)  # of a call's arguments


def mock_model_card() -> ModelCard:
    """A card that says what it is."""
    return ModelCard(
        weights_name="mock (no model)",
        max_model_len=MOCK_CONTEXT_LEN,
        model_context_len=MOCK_CONTEXT_LEN,
        is_mock=True,
        notices=("No model is loaded: answers are made up or come from a script.",),
    )


def mock_services(script: Script) -> Services:
    """Everything a mock server needs."""
    metrics = Metrics()
    generator = MockGenerator(metrics, script)
    return Services(
        generator=generator,
        model_card=mock_model_card(),
        engine=generator,
        metrics=metrics,
        embeddings=MockEmbedder(script.error_codes),
    )


def pieces(text: str) -> list[str]:
    """The mock's tokens; joined they are the text."""
    return _WORD.findall(text)


class MockGenerator:
    """Answers like the real generator; also stands in for the engine where health and statistics are asked."""

    def __init__(self, metrics: Metrics, script: Script) -> None:
        self._metrics = metrics
        self._script = script
        self._num_running = 0
        self._num_aborts = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    max_model_len = MOCK_CONTEXT_LEN

    def start(self) -> None:
        """Nothing to start."""

    def stats(self) -> EngineStats:
        """Counts of the mock's own work."""
        return EngineStats(
            num_running=self._num_running,
            prompt_tokens_total=self._prompt_tokens,
            generated_tokens_total=self._generated_tokens,
            aborts_total=self._num_aborts,
        )

    def health(self) -> EngineHealth:
        """Always well."""
        return EngineHealth(is_alive=True, is_ready=True)

    async def complete(self, request: GenerateRequest) -> list[Answer]:
        """One answer per choice, by index."""
        async with aclosing(self.stream(request)) as events:
            return await fold(events)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events as a script or the request itself demands; see `mock_script` for the faults."""
        began_s = time.perf_counter()
        num_prompt_tokens = _num_prompt_tokens(request)
        if num_prompt_tokens + request.sampling.max_tokens > MOCK_CONTEXT_LEN:
            raise ContextLengthError(
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=request.sampling.max_tokens,
                max_model_len=MOCK_CONTEXT_LEN,
            )
        cue = self._script.cue_for(request)
        self._num_running += 1
        is_done = False
        try:
            await cue.begin()
            self._prompt_tokens += num_prompt_tokens
            for index in range(request.n):
                async for event in self._choice(request, cue, index, num_prompt_tokens):
                    if isinstance(event, Finished):
                        self._metrics.observe_finished(event.finish_reason, time.perf_counter() - began_s)
                    yield event
            is_done = True
        finally:
            self._num_running -= 1
            self._num_aborts += not is_done

    async def _choice(
        self, request: GenerateRequest, cue: Cue, index: int, num_prompt_tokens: int
    ) -> AsyncGenerator[Event, None]:
        if request.echo and request.prompt is not None:
            yield TextDelta(request.prompt, index)
        calls = _calls(request, cue)
        text = cue.reply if cue.reply is not None else ("" if calls else _made_up(request))
        matcher = StopStringMatcher(request.stop)
        num_tokens = 0
        reason = FinishReason.STOP
        for piece in pieces(text):
            if num_tokens >= request.sampling.max_tokens:
                reason = FinishReason.LENGTH
                break
            if num_tokens == cue.cut_after:
                raise StreamCut
            if num_tokens and cue.token_delay_ms:
                await asyncio.sleep(cue.token_delay_ms / 1000)
            num_tokens += 1
            self._generated_tokens += 1
            certain = matcher.feed(piece)
            if certain:
                yield TextDelta(certain, index)
            if matcher.matched is not None:
                break
        held = "" if matcher.matched is not None else matcher.finish()
        if held:
            yield TextDelta(held, index)
        if calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
            for call_index, call in enumerate(calls):
                if num_tokens == cue.cut_after:
                    raise StreamCut
                num_tokens += 1
                for event in _call_events(call, call_index, index):
                    yield event
        if num_tokens == cue.cut_after:
            raise StreamCut
        reason = FinishReason(cue.finish_reason or reason)
        yield Finished(reason, _usage(num_prompt_tokens, num_tokens, index), index, matcher.matched)


def _call_events(call: ToolCall, call_index: int, index: int) -> list[Event]:
    """A call in pieces, as the real generator delivers it."""
    made = replace(call, call_id=f"mock-call-{call_index}")
    made = replace(made, arguments_json=arguments_text(made))
    fragments = _FRAGMENT.findall(made.arguments_json)
    return [
        ToolCallDelta(call_index, made.call_id, made.name, index=index),
        *(ToolCallDelta(call_index, arguments_json=fragment, index=index) for fragment in fragments),
        ToolCallDelta(call_index, call=made, index=index),
    ]


def _usage(num_prompt_tokens: int, num_tokens: int, index: int) -> Usage:
    return Usage(num_prompt_tokens if index == 0 else 0, num_tokens, 0)


def _num_prompt_tokens(request: GenerateRequest) -> int:
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    texts = [request.prompt or "", *(message.content for message in request.messages or ())]
    return max(1, sum(len(pieces(text)) for text in texts))


def _made_up(request: GenerateRequest) -> str:
    """An echo of the last message, or the smallest JSON that fits the requested format."""
    if request.response_format is not None:
        return json.dumps(example_value(request.response_format.schema or {}), ensure_ascii=False)
    return f"You said: {last_text(request)}".rstrip()


def _calls(request: GenerateRequest, cue: Cue) -> tuple[ToolCall, ...]:
    if request.tool_choice.mode == "none":
        return ()
    return cue.tool_calls or (() if cue.reply is not None else _forced_calls(request))


def _forced_calls(request: GenerateRequest) -> tuple[ToolCall, ...]:
    """The call that `tool_choice` demands, with arguments made up from the tool's schema."""
    choice = request.tool_choice
    if choice.mode not in ("required", "named"):
        return ()
    for tool in request.tools:
        if not choice.names or tool.name in choice.names:
            arguments = example_value({"type": "object", **tool.parameters})
            return (ToolCall(tool.name, arguments if isinstance(arguments, dict) else {}),)
    return ()
