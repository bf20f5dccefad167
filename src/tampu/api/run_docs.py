"""What the OpenAPI document promises of routes that run a model: error statuses, and answers of two kinds."""

from __future__ import annotations

from typing import Any

_ENTRY = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    "required": ["code", "message"],
}
V4_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "errors": {"type": "array", "items": _ENTRY},
        "success": {"const": False},
        "result": {"anyOf": [{"type": "null"}, {"type": "object"}]},
        "messages": {"type": "array"},
    },
    "required": ["errors", "success", "result", "messages"],
}
_STATUSES = (
    (400, "The request is wrong; `errors[0]` says where"),
    (401, "The token is not known"),
    (403, "The token or the web page may not do this"),
    (404, "The account id is malformed, or the thing named does not exist"),
    (405, "Not offered: LoRA without adapters, or another method"),
    (408, "The request took too long or was aborted"),
    (413, "The body or the prompt is too long"),
    (429, "Too many requests are waiting"),
    (500, "Internal error"),
    (503, "The engine stopped or is not ready"),
)


def error_responses(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route, each status with this schema."""
    return {
        status: {"description": text, "content": {"application/json": {"schema": schema}}} for status, text in _STATUSES
    }


ERROR_RESPONSES = error_responses(V4_ERROR_SCHEMA)

RUN_ANSWER: dict[str, Any] = {
    "description": "The answer; server-sent events with `stream: true`",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {"schema": {"type": "string"}},
    },
}
