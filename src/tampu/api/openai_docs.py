"""What the OpenAPI document says about the OpenAI routes: summaries, body schemas, answers and errors."""

from __future__ import annotations

from typing import Any

from tampu.api.openai_parameters import (
    CHAT_PARAMETERS,
    COMPLETION_PARAMETERS,
    EMBEDDING_PARAMETERS,
    RESPONSES_PARAMETERS,
)
from tampu.api.parameter_tables import request_schema
from tampu.api.run_docs import V4_ERROR_SCHEMA, error_responses

_INTEGER = {"type": "integer"}
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **V4_ERROR_SCHEMA["properties"],
        "error": {
            "type": "object",
            "properties": {"message": _TEXT, "type": _TEXT, "code": _TEXT_OR_NULL, "param": _TEXT_OR_NULL},
            "required": ["message", "type", "code", "param"],
        },
    },
    "required": ["error", "errors", "success"],
}
_RESPONSES = error_responses(ERROR_SCHEMA)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_USAGE = _object(prompt_tokens=_INTEGER, completion_tokens=_INTEGER, total_tokens=_INTEGER)
_CHOICE = _object(index=_INTEGER, finish_reason=_TEXT)
_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_INTEGER, owned_by=_TEXT)
_EMBEDDING = _object(
    object={"const": "embedding"},
    index=_INTEGER,
    embedding={"anyOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]},
)


def _completion(kind: str) -> dict[str, Any]:
    return _object(
        id=_TEXT, object={"const": kind}, created=_INTEGER, model=_TEXT, choices=_list_of(_CHOICE), usage=_USAGE
    )


_ANSWERS: dict[str, dict[str, Any]] = {
    "chat_completions": _completion("chat.completion"),
    "completions": _completion("text_completion"),
    "embeddings": _object(object={"const": "list"}, data=_list_of(_EMBEDDING), model=_TEXT),
    "list_models": _object(object={"const": "list"}, data=_list_of(_MODEL)),
    "get_model": _MODEL,
    "responses": _object(
        id=_TEXT, object={"const": "response"}, status=_TEXT, model=_TEXT, output=_list_of({"type": "object"})
    ),
}
_SUMMARIES = {
    "chat_completions": "Answer a conversation",
    "completions": "Continue a prompt",
    "embeddings": "Embed texts",
    "list_models": "List models",
    "get_model": "Show one model",
    "responses": "Answer in the Responses format",
}
_BODIES = {
    "chat_completions": request_schema(CHAT_PARAMETERS, ("model", "messages")),
    "completions": request_schema(COMPLETION_PARAMETERS, ("model", "prompt")),
    "embeddings": request_schema(EMBEDDING_PARAMETERS, ("model", "input")),
    "responses": request_schema(RESPONSES_PARAMETERS, ("model", "input")),
}
_STREAMING = ("chat_completions", "completions", "responses")


def route_docs(name: str) -> dict[str, Any]:
    """Keyword arguments of `add_api_route` for the endpoint function of this name."""
    content: dict[str, Any] = {"application/json": {"schema": _ANSWERS[name]}}
    if name in _STREAMING:
        content["text/event-stream"] = {"schema": _TEXT}
    docs: dict[str, Any] = {
        "summary": _SUMMARIES[name],
        "responses": {200: {"description": "The answer", "content": content}, **_RESPONSES},
    }
    if name in _BODIES:
        body = {"required": True, "content": {"application/json": {"schema": _BODIES[name]}}}
        docs["openapi_extra"] = {"requestBody": body}
    return docs
