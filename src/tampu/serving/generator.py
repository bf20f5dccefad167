"""The main use case: a validated request in, typed events out. Text above, token ids below, no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

from tampu.core.chat import ToolCall, ToolSpec, shown_list, shown_name
from tampu.core.errors import ContextLengthError, InvalidRequestError, JsonModeError, RequestAbortedError, TampuError
from tampu.core.output import FinishReason, RequestOutput
from tampu.core.request import Request
from tampu.serving.answers import Answer, fold
from tampu.serving.choice import Choice
from tampu.serving.delivery import Channel, Delivery
from tampu.serving.events import Event, Finished, TextDelta
from tampu.serving.metrics import Metrics
from tampu.serving.ports import ConstraintSource, GenerationEngine, TextCodec
from tampu.serving.requests import GenerateRequest, callable_tools

# A prompt of this many characters is tokenised in well under a millisecond; longer ones leave the event loop.
_INLINE_PROMPT_CHARS = 2_000


def derive_seed(seed: int, index: int) -> int:
    """The seed of choice `index` (64 bits). Choice 0 keeps the client's, so that `n` does not change it.

    Hashed, because seeds a fixed step apart would only shift the positions of one and the same random stream.
    """
    if index == 0:
        return seed % 2**64
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Generator:
    """Runs requests through codec and engine. Owns the delivery table and nothing else that outlives a request."""

    def __init__(self, engine: GenerationEngine, codec: TextCodec, metrics: Metrics) -> None:
        self._engine = engine
        self._codec = codec
        self._metrics = metrics
        self._delivery = Delivery()
        self._is_started = False
        self._tokenise_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tampu-tokenise")

    def start(self) -> None:
        """Start the engine with this generator as the receiver of its outputs. Idempotent."""
        if not self._is_started:
            self._is_started = True
            self._engine.start(self._delivery.deliver)

    def close(self) -> None:
        """Free the threads that tokenise and compile. The engine belongs to whoever made it."""
        self._codec.close()
        self._tokenise_pool.shutdown(wait=False, cancel_futures=True)

    @property
    def num_open_requests(self) -> int:
        """Engine requests somebody still waits for; 0 after a drain."""
        return len(self._delivery)

    async def complete(self, request: GenerateRequest) -> list[Answer]:
        """One answer per choice, by index."""
        async with aclosing(self._events(request)) as events:
            return await fold(events)

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events as they come; `aclose()` aborts what still runs.

        Raises (from the first `anext`): InvalidRequestError, ContextLengthError, OverloadedError, EngineDeadError.
        """
        return self._events(request)

    async def _events(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if request.functions:
            raise InvalidRequestError(
                "functions", "'functions' cannot run on this server", hint="Start it with --enable-functions."
            )
        arrival_s = time.perf_counter()
        prompt_token_ids = await self._encode(request)
        constraint = await self._codec.constraint(request)
        choices = self._choices(request, prompt_token_ids, constraint)
        if request.echo:
            text = self._prompt_text(request, prompt_token_ids)
            for choice in choices:
                yield TextDelta(text, choice.index)
        channel = Channel()
        clock = _Clock(self._metrics, arrival_s)
        running: dict[str, Choice] = {}
        outcome = FinishReason.ABORT  # of what is still running when this block is left early
        try:
            for choice in choices:
                self._submit(choice, channel)
                running[choice.request_id] = choice
            while running:
                for output in await channel.take():
                    if output.request_id not in running:
                        continue
                    clock.tick(output)
                    last: Event | None = None
                    for last in running[output.request_id].take(_told(output, request)):
                        yield last
                    if isinstance(last, Finished):
                        self._close(running.pop(output.request_id), is_done=output.finish_reason is not None)
                        clock.finish(last.finish_reason)
        except TampuError:
            outcome = FinishReason.ERROR
            raise
        finally:
            for choice in running.values():
                self._close(choice, is_done=False)
                clock.finish(outcome)

    def _submit(self, choice: Choice, channel: Channel) -> None:
        self._delivery.open(choice.request_id, channel)
        try:
            self._engine.submit(choice.request)
        except TampuError:
            self._delivery.close(choice.request_id)
            raise

    def _close(self, choice: Choice, *, is_done: bool) -> None:
        """Forget a choice; end it in the engine too, unless the engine itself said that it is done."""
        self._delivery.close(choice.request_id)
        if not is_done:
            self._engine.abort(choice.request_id)

    async def _encode(self, request: GenerateRequest) -> tuple[int, ...]:
        """Prompt token ids, counted against the context window. No id beyond the vocabulary reaches the engine."""
        _check_token_ids(request, self._codec.vocab_size)
        if request.prompt_token_ids is not None:
            token_ids = request.prompt_token_ids
        elif _is_short(request):
            token_ids = self._codec.encode(request)
        else:
            loop = asyncio.get_running_loop()
            token_ids = await loop.run_in_executor(self._tokenise_pool, self._codec.encode, request)
        if not token_ids:
            raise InvalidRequestError("prompt", "the prompt is empty", hint="Send at least one character.")
        max_tokens = request.sampling.max_tokens
        limit = self._engine.max_model_len
        if len(token_ids) + max_tokens > limit:
            raise ContextLengthError(num_prompt_tokens=len(token_ids), max_tokens=max_tokens, max_model_len=limit)
        return token_ids

    def _choices(
        self, request: GenerateRequest, prompt_token_ids: tuple[int, ...], constraint: ConstraintSource | None
    ) -> list[Choice]:
        """The engine requests of a generation, in choice order."""
        # A grammar that is satisfied allows nothing but the end, so a constrained answer has to stop there.
        stop_token_ids = () if request.ignore_eos and constraint is None else self._codec.eos_token_ids
        sampling = replace(request.sampling, stop_token_ids=stop_token_ids)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        # The client's request id is for the eye; the engine's must be unique even when a client repeats one.
        prefix = f"{request.request_id or 'request'}-{uuid.uuid4().hex[:8]}"
        choices = []
        for index in range(request.n):
            engine_request = Request(
                request_id=f"{prefix}-{index}",
                prompt_token_ids=prompt_token_ids,
                sampling_params=sampling,
                seed=derive_seed(seed, index),
                lora_id=request.lora,
                tenant=request.tenant,
                constraint=None if constraint is None else constraint.new_constraint(sampling.max_tokens),
            )
            choices.append(
                Choice(
                    index,
                    engine_request,
                    self._codec,
                    stops=request.stop,
                    tools=callable_tools(request),
                    is_call_demanded=request.tool_choice.mode in ("required", "named"),
                    has_single_call=not request.parallel_tool_calls,
                )
            )
        return choices

    def _prompt_text(self, request: GenerateRequest, prompt_token_ids: tuple[int, ...]) -> str:
        if request.prompt is not None:
            return request.prompt
        decoder = self._codec.decoder()
        return decoder.add(prompt_token_ids) + decoder.finish()


class _Clock:
    """Times one generation for the histograms."""

    def __init__(self, metrics: Metrics, arrival_s: float) -> None:
        self._metrics = metrics
        self._arrival_s = arrival_s
        self._last_s: dict[str, float] = {}

    def tick(self, output: RequestOutput) -> None:
        if not output.new_token_ids:
            return
        now_s = time.perf_counter()
        last_s = self._last_s.get(output.request_id)
        if last_s is None:
            self._metrics.observe_first_token(now_s - self._arrival_s)
        else:
            self._metrics.observe_inter_token((now_s - last_s) / len(output.new_token_ids))
        self._last_s[output.request_id] = now_s

    def finish(self, reason: FinishReason) -> None:
        self._metrics.observe_finished(reason, time.perf_counter() - self._arrival_s)


def _told(output: RequestOutput, request: GenerateRequest) -> RequestOutput:
    """The output with errors in the client's terms. An abort that it did not ask for (drain, shutdown) is one."""
    if isinstance(output.error, JsonModeError):
        return replace(output, error=_stuck(str(output.error), request))
    if output.finish_reason is FinishReason.ABORT:
        return replace(output, error=RequestAbortedError("the request was aborted because the server is shutting down"))
    return output


def _stuck(reason: str, request: GenerateRequest) -> TampuError:
    """What a constraint that allows nothing any more means: JSON mode, or a call to a tool, that cannot go on."""
    tools = callable_tools(request)
    if not tools:
        return JsonModeError(
            f"The answer could not be continued: {reason}. A pattern of the schema may cost too much to follow, or "
            "contradict another: simplify it."
        )
    shown = shown_list([shown_name(tool.name) for tool in tools])
    is_demanded = request.tool_choice.mode in ("required", "named")
    what = (
        "the demanded call" if is_demanded else "the JSON answer, or the call," if request.response_format else "a call"
    )
    place = tools[0].place or "tools"
    return InvalidRequestError(
        place if len(tools) == 1 else place.split("/", 1)[0],
        f"{what} of {shown} could not be continued: {reason}",
        hint="A pattern in the parameters may cost too much to follow, or contradict another: simplify it.",
    )


def _check_token_ids(request: GenerateRequest, vocab_size: int) -> None:
    """Refuse a client's own token ids that name no token. Raises InvalidRequestError."""
    named = [(f"logit_bias/{token_id}", token_id) for token_id, _ in request.sampling.logit_bias]
    if request.prompt_token_ids:
        named.append(("prompt", max(request.prompt_token_ids)))
    for field, token_id in named:
        if token_id >= vocab_size:
            raise InvalidRequestError(
                field, f"'{field}' names token {token_id}, and the model has {vocab_size}", hint="Use its own tokens."
            )


def _is_short(request: GenerateRequest) -> bool:
    """True when the prompt is quickly tokenised: messages, calls of the history, and tools with their schemas."""
    pending: list[object] = [
        request.prompt,
        *((m.content, m.tool_calls) for m in request.messages or ()),
        request.tools,
    ]
    left = _INLINE_PROMPT_CHARS
    while pending and left >= 0:
        item = pending.pop()
        left -= 1
        match item:
            case str():
                left -= len(item)
            case ToolCall():
                pending.append(item.arguments)
            case ToolSpec():
                pending += (item.description, item.parameters)
            case Mapping():
                left -= len(item)
                pending += item.keys() if left >= 0 else ()
                pending += item.values() if left >= 0 else ()
            case list() | tuple():
                left -= len(item)
                pending += item if left >= 0 else ()
    return left >= 0
