"""Runs one native request, whichever door it came through: REST and the Worker binding differ only in the wrapping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from tampu.api.context import AppContext, request_id_of, tenant_of
from tampu.api.embeddings import embedder_for, native_embedding_result, parse_native_embedding
from tampu.api.errors import ApiError
from tampu.api.native_answer import neurons, result_body, stream_frames
from tampu.api.native_request import NativeRequest, parse_native_request
from tampu.api.replies import unless_disconnected, with_first
from tampu.core.errors import UnknownModelError
from tampu.serving.answers import fold
from tampu.serving.events import Event


@dataclass(frozen=True, slots=True)
class NativeReply:
    """Either `result` (a plain answer) or `frames` (a stream) is set."""

    result: dict[str, Any] | None = None
    frames: AsyncGenerator[bytes, None] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


async def run_native(request: Request, context: AppContext, *, model: str, payload: Any, options: Any) -> NativeReply:
    """Validate, generate, and put the answer into the native format.

    Raises:
        TampuError: everything that can be wrong before the first byte is sent.
    """
    services, config = context.services, context.config
    check_model(context, model)
    embedder = embedder_for(context, model)
    if embedder is not None:
        call = parse_native_embedding(payload, embedder.card, is_strict=config.is_strict)
        vectors = await unless_disconnected(request.receive, embedder.embed(call.texts))
        return NativeReply(result=native_embedding_result(vectors, embedder.card))
    request_id = request_id_of(request)
    native = parse_native_request(payload, model=model, request_id=request_id, tenant=tenant_of(request), config=config)
    is_json_mode = native.generate.response_format is not None
    if is_json_mode and native.is_stream and config.is_strict:
        raise ApiError(5023)
    if isinstance(options, dict) and options.get("rejectIfBusy") is True and services.engine.stats().num_waiting:
        raise ApiError(3040, hint="The server is busy and the request asked not to wait (rejectIfBusy).")
    stream = services.generator.stream(native.generate)
    if config.request_timeout_s is not None:
        stream = within(stream, config.request_timeout_s)
    if native.is_stream:
        events = await with_first(stream, request.receive)
        frames = stream_frames(events, request_id=request_id, config=config)
        return NativeReply(frames=frames, notes=native.notes)
    return await _plain(request, context, native, stream)


def check_model(context: AppContext, model: str) -> None:
    """Refuse a model that is not served here. Raises UnknownModelError."""
    if not context.services.model_card.accepts(model) and embedder_for(context, model) is None:
        raise UnknownModelError(model, served=context.services.model_card.name)


async def _plain(
    request: Request, context: AppContext, native: NativeRequest, stream: AsyncGenerator[Event, None]
) -> NativeReply:
    async with aclosing(stream):
        (answer,) = await unless_disconnected(request.receive, fold(stream))
    result = result_body(answer, native.generate, context.config)
    headers = {"cf-ai-neurons": f"{neurons(answer.usage):.2f}"}
    return NativeReply(result=result, headers=headers, notes=native.notes)


async def within(stream: AsyncGenerator[Event, None], timeout_s: float) -> AsyncGenerator[Event, None]:
    """The same events, or ApiError 3007 once they have taken too long altogether."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    event = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise ApiError(3007, hint=f"The limit of this server is {timeout_s:g} s.") from None
            yield event
    finally:
        await stream.aclose()
