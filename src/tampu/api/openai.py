"""The OpenAI-compatible routes, under `/v1` and under each account. Bodies and streams are made elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.params import Depends as Dependency
from starlette.requests import Request
from starlette.responses import Response

from tampu.api.account_path import check_account_id
from tampu.api.body import parse_json, read_body
from tampu.api.cabidela import SchemaMismatchError, validate
from tampu.api.context import AppContext, context_of, request_id_of, tenant_of
from tampu.api.embeddings import embedder_for, embedding_body, parse_embedding
from tampu.api.errors import ApiError
from tampu.api.native_run import within
from tampu.api.openai_answer import AnswerIds, ChatFrames, CompletionFrames, chat_body, completion_body
from tampu.api.openai_chat import Caller, GenerationCall, parse_chat, parse_completion
from tampu.api.openai_docs import route_docs
from tampu.api.openai_responses import parse_responses
from tampu.api.openai_responses_stream import ResponseWriter, response_body, response_stream
from tampu.api.openai_stream import broken_stream_frame, chat_stream, completion_stream, merged
from tampu.api.parameter_tables import ignored_header
from tampu.api.replies import EventStream, json_reply, unless_disconnected, with_first
from tampu.api.run_schema import INPUT_SCHEMA
from tampu.core.errors import InvalidRequestError, UnknownModelError
from tampu.serving.answers import Answer, fold
from tampu.serving.embedder import TextEmbedder
from tampu.serving.events import Event
from tampu.serving.requests import GenerateRequest
from tampu.serving.services import Services

HOSTED_PREFIX = "/client/v4/accounts/{account_id}/ai/v1"

_IDS = "answer_ids"  # name in the app's state


async def chat_completions(request: Request) -> Response:
    """An answer to a conversation; with `stream: true` as server-sent events."""
    context = context_of(request)
    body = await _json(request)
    if context.config.is_strict:
        check_hosted_schema(body)
    call = parse_chat(body, _caller(request), context.config)
    check_chat_model(context, call.model)
    check_not_busy(context, call.rejects_if_busy)
    generate = call.requests[0]
    has_logprobs = generate.sampling.num_logprobs is not None
    head = answer_ids(request).head(call.model)
    if call.is_stream:
        frames = ChatFrames(
            head, has_logprobs=has_logprobs, has_usage=call.has_stream_usage, uses_functions=call.uses_functions
        )
        events = await with_first(events_of(context, generate), request.receive)
        return _event_stream(request, chat_stream(events, frames, generate.n, _on_error(request)), call)
    answers = await answers_of(request, generate)
    body = chat_body(head, answers, has_logprobs=has_logprobs, uses_functions=call.uses_functions)
    return json_reply(body, headers=reply_headers(request, call.ignored))


async def completions(request: Request) -> Response:
    """A continuation of one or more prompts, without a chat template."""
    context = context_of(request)
    call = parse_completion(await _json(request), _caller(request), context.config)
    check_chat_model(context, call.model)
    check_not_busy(context, call.rejects_if_busy)
    first = call.requests[0]
    has_logprobs = first.sampling.num_logprobs is not None
    head = answer_ids(request).head(call.model)
    if call.is_stream:
        frames = CompletionFrames(head, has_logprobs=has_logprobs, has_usage=call.has_stream_usage)
        events = merged([events_of(context, each) for each in call.requests])
        started = await with_first(events, request.receive)
        stream = completion_stream(started, frames, len(call.requests), first.n, _on_error(request))
        return _event_stream(request, stream, call)
    answers = await unless_disconnected(request.receive, _all_answers(context, call.requests))
    body = completion_body(head, answers, has_logprobs=has_logprobs)
    return json_reply(body, headers=reply_headers(request, call.ignored))


async def responses(request: Request) -> Response:
    """An answer in the Responses format; with `stream: true` as server-sent events. Nothing is stored."""
    context = context_of(request)
    call = parse_responses(await _json(request), _caller(request), context.config)
    check_chat_model(context, call.request.model)
    check_not_busy(context, call.rejects_if_busy)
    writer = ResponseWriter(answer_ids(request).head(call.request.model), call.echo)
    headers = reply_headers(request, call.ignored)
    stream = events_of(context, call.request)
    if call.is_stream:
        events = await with_first(stream, request.receive)
        is_strict = context.config.is_strict
        return EventStream(response_stream(events, writer, request_id_of(request), is_strict=is_strict), headers)
    body = await unless_disconnected(request.receive, response_body(stream, writer))
    return json_reply(body, headers=headers)


async def embeddings(request: Request) -> Response:
    """Vectors of one or more texts."""
    context = context_of(request)
    body = await _json(request)
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str):
        raise InvalidRequestError("model", "'model' must be the name of an embedding model", hint="Send 'model'.")
    embedder = _embedder_of(context, model)
    call = parse_embedding(body, embedder.card, is_strict=context.config.is_strict)
    result = await unless_disconnected(request.receive, embedder.embed(call.texts))
    reply = embedding_body(result, model, is_base64=call.is_base64)
    return json_reply(reply, headers=reply_headers(request, call.ignored))


async def list_models(request: Request) -> Response:
    """The models served here, and which weights really answer. The hosted service has no such route."""
    context = context_of(request)
    _refuse_when_strict(request, context)
    return json_reply({"object": "list", "data": _models(context.services)})


async def get_model(request: Request, model: str) -> Response:
    """One model by its name."""
    context = context_of(request)
    _refuse_when_strict(request, context)
    if context.services.model_card.accepts(model):
        return json_reply(_models(context.services)[0])
    for item in _models(context.services):
        if item["id"] == model:
            return json_reply(item)
    raise ApiError(5007, model, param="model", hint="GET /v1/models lists the names.", status=404)


def check_chat_model(context: AppContext, model: str) -> None:
    """Refuse a model that is not the language model served here.

    Raises:
        InvalidRequestError: for the embedding model.
        UnknownModelError: for every other name.
    """
    if context.services.model_card.accepts(model):
        return
    if embedder_for(context, model) is not None:
        sentence = f"'model' names {model}, which gives embeddings and does not generate text"
        raise InvalidRequestError("model", sentence, hint=f"Name {context.services.model_card.name} instead.")
    raise UnknownModelError(model, served=context.services.model_card.name)


def _embedder_of(context: AppContext, model: str) -> TextEmbedder:
    """The embedding model of this name. Raises InvalidRequestError for the language model, UnknownModelError else."""
    embedder = embedder_for(context, model)
    if embedder is not None:
        return embedder
    embedder = context.services.embeddings
    if context.services.model_card.accepts(model):
        sentence = f"'model' names {model}, which generates text and gives no embeddings"
        hint = "This server has no embedding model." if embedder is None else f"Name {embedder.card.name} instead."
        raise InvalidRequestError("model", sentence, hint=hint)
    raise UnknownModelError(model, served=embedder.card.name if embedder is not None else "")


def check_hosted_schema(body: Any) -> None:
    """The hosted service holds this path to the run endpoint's schema. Raises ApiError 5006 in its words."""
    if isinstance(body, dict):  # a copy: validation fills in defaults; a null limit is sent by known clients
        body = {name: value for name, value in body.items() if (name, value) != ("max_tokens", None)}
    try:
        validate(INPUT_SCHEMA, body)
    except SchemaMismatchError as error:
        raise ApiError(5006, str(error)) from None


def check_not_busy(context: AppContext, rejects_if_busy: bool) -> None:
    """Honour `options.rejectIfBusy`. Raises ApiError 3040."""
    if rejects_if_busy and context.services.engine.stats().num_waiting:
        raise ApiError(3040, hint="The server is busy and the request asked not to wait (rejectIfBusy).")


def events_of(context: AppContext, generate: GenerateRequest) -> AsyncGenerator[Event, None]:
    """The events of a generation, within the server's time limit."""
    stream = context.services.generator.stream(generate)
    if context.config.request_timeout_s is None:
        return stream
    return within(stream, context.config.request_timeout_s)


async def answers_of(request: Request, generate: GenerateRequest) -> list[Answer]:
    """The whole answers of a generation, which ends when the client goes away."""
    return await unless_disconnected(request.receive, _answers(context_of(request), generate))


def answer_ids(request: Request) -> AnswerIds:
    """The id counter of this app."""
    state = request.app.state
    if not hasattr(state, _IDS):
        setattr(state, _IDS, AnswerIds())
    ids: AnswerIds = getattr(state, _IDS)
    return ids


def reply_headers(request: Request, ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """Headers of every answer that reached the model."""
    return {"cf-ai-req-id": request_id_of(request), **ignored_header(ignored)}


async def _json(request: Request) -> Any:
    return parse_json(await read_body(request, context_of(request).config.max_body_bytes))


def _caller(request: Request) -> Caller:
    return Caller(request_id_of(request), tenant_of(request))


def _on_error(request: Request) -> Any:
    return broken_stream_frame(request_id_of(request), is_strict=context_of(request).config.is_strict)


def _event_stream(request: Request, frames: AsyncGenerator[bytes, None], call: GenerationCall) -> Response:
    return EventStream(frames, reply_headers(request, call.ignored))


async def _answers(context: AppContext, generate: GenerateRequest) -> list[Answer]:
    async with aclosing(events_of(context, generate)) as events:
        return await fold(events)


async def _all_answers(context: AppContext, requests: tuple[GenerateRequest, ...]) -> list[Answer]:
    """The answers to all prompts, numbered through. The first problem ends the other generations."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answers(context, each)) for each in requests]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    answers = [answer for task in tasks for answer in task.result()]
    return [replace(answer, index=index) for index, answer in enumerate(answers)]


def _refuse_when_strict(request: Request, context: AppContext) -> None:
    if context.config.is_strict and "account_id" in request.path_params:
        raise ApiError(7001, request.method)


def _models(services: Services) -> list[dict[str, Any]]:
    card = services.model_card
    items: list[dict[str, Any]] = [
        {
            "id": card.name,
            "object": "model",
            "created": card.created_at,
            "owned_by": "tampu",
            "max_model_len": card.max_model_len,
            "tampu": {
                "weights": card.weights_name,
                "file": card.file.rsplit("/", 1)[-1],
                "quantization": card.quantization,
                "parameters": card.num_parameters,
                "model_context_len": card.model_context_len,
                "kv_cache_tokens": card.kv_capacity_tokens,
                "is_stand_in": card.is_stand_in,
                "aliases": list(card.aliases),
            },
        }
    ]
    if services.embeddings is not None:
        embedding = services.embeddings.card
        items.append(
            {
                "id": embedding.name,
                "object": "model",
                "created": embedding.created_at,
                "owned_by": "tampu",
                "max_model_len": embedding.max_tokens,
                "tampu": {
                    "weights": embedding.weights_name,
                    "file": embedding.file.rsplit("/", 1)[-1],
                    "parameters": embedding.num_parameters,
                    "dimensions": embedding.dimensions,
                },
            }
        )
    return items


async def _check_account(request: Request, account_id: str) -> None:
    check_account_id(request, account_id)


def _router(prefix: str, dependencies: list[Dependency]) -> APIRouter:
    """The same routes under one prefix."""
    made = APIRouter(prefix=prefix, tags=["OpenAI"], dependencies=dependencies)
    for path, method, endpoint in (
        ("/chat/completions", "POST", chat_completions),
        ("/completions", "POST", completions),
        ("/responses", "POST", responses),
        ("/embeddings", "POST", embeddings),
        ("/models", "GET", list_models),
        ("/models/{model:path}", "GET", get_model),
    ):
        made.add_api_route(path, endpoint, methods=[method], **route_docs(endpoint.__name__))
    return made


local_router = _router("/v1", [])
hosted_router = _router(HOSTED_PREFIX, [Depends(_check_account)])
