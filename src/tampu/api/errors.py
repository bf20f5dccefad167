"""One table from what went wrong to code, HTTP status and text, and the envelopes each protocol wraps it in.

Routes raise `ApiError` (or let a `TampuError` pass); nobody else writes an error body. Texts come from a fixed
catalogue: what an unexpected exception says goes to the log, never to the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tampu.core.errors import (
    AdapterError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    JsonModeError,
    OverloadedError,
    RequestAbortedError,
    TampuError,
    UnknownModelError,
)
from tampu.serving.faults import MockFaultError


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the table. `text` and `binding_text` are the hosted wording around the detail (`{}`)."""

    code: int
    status: int
    text: str  # REST: `errors[0].message`
    binding_text: str = ""  # Worker binding: `description`; empty = the REST text without its AiError prefix
    openai_type: str = "invalid_request_error"
    openai_code: str | None = None  # None = the number as a string
    is_routing: bool = False  # answered before a model was reached: `"result": null`, no cf-ai-req-id
    shows_request_id: bool = False  # the hosted text ends with the request id in parentheses


_RATE = "rate_limit_error"
_SERVER = "server_error"
_AUTH = "authentication_error"

KINDS: dict[int, ErrorKind] = {
    kind.code: kind
    for kind in (
        # the model layer: documented codes
        ErrorKind(5007, 400, "No such model {} or task", openai_code="model_not_found"),
        ErrorKind(5004, 400, "AiError: Invalid data type for base64 input: {}"),
        ErrorKind(5005, 405, "AiError: LoRA unsupported: The model {} does not support LoRA inference"),
        ErrorKind(5006, 400, "AiError: Bad input: Error: {}", "Error: {}"),
        ErrorKind(3003, 400, "AiError: Request is missing headers or body: {}"),
        ErrorKind(3006, 413, "AiError: Request is too large: {}"),
        ErrorKind(3007, 408, "AiError: Request timeout", openai_type=_SERVER, shows_request_id=True),
        ErrorKind(3008, 408, "AiError: Request was aborted", openai_type=_SERVER),
        ErrorKind(3023, 403, "AiError: Service unavailable for account", openai_type="permission_error"),
        ErrorKind(3036, 429, "AiError: You have used up your daily free allocation of neurons.", openai_type=_RATE),
        ErrorKind(3039, 400, "AiError: Finetune is missing required files (model.safetensors and config.json)"),
        ErrorKind(3040, 429, "AiError: Capacity temporarily exceeded, please try again.", openai_type=_RATE),
        ErrorKind(3041, 403, "AiError: account not allowed to access this model", openai_type="permission_error"),
        ErrorKind(3042, 404, "AiError: The model name is invalid", openai_code="model_not_found"),
        ErrorKind(5016, 403, "AiError: Model agreement: {}", openai_type="permission_error"),
        ErrorKind(5018, 403, "AiError: account not allowed to access this model", openai_type="permission_error"),
        ErrorKind(5019, 405, "AiError: Request trying to use deprecated SDK version"),
        ErrorKind(5035, 403, "AiError: {} requires the Workers Paid plan", openai_type="permission_error"),
        # the model layer: observed codes
        ErrorKind(5021, 413, "AiError: Ai: {}", "{}", openai_code="context_length_exceeded", shows_request_id=True),
        ErrorKind(5023, 400, "AiError: JSON Schema mode is not supported with stream mode."),
        ErrorKind(5024, 400, "AiError: JSON Mode couldn't be met"),
        ErrorKind(5025, 400, "AiError: This model doesn't suuport JSON Schema."),
        ErrorKind(5028, 410, "AiError: This model was deprecated: {}"),
        ErrorKind(5033, 400, "AiError: Finetune not found: {} does not exist or is not accessible"),
        ErrorKind(3030, 400, "AiError: {}"),
        ErrorKind(3043, 500, "AiError: Internal server error", openai_type=_SERVER, shows_request_id=True),
        ErrorKind(3046, 408, "AiError: Request timeout", openai_type=_SERVER, shows_request_id=True),
        ErrorKind(4006, 429, "AiError: AiError: you have used up your daily free allocation of 10,000 neurons, please "
                  "upgrade to Cloudflare's Workers Paid plan if you would like to continue usage.",
                  openai_type=_RATE, shows_request_id=True),
        ErrorKind(8001, 400, "AiError: Invalid input: {}"),
        ErrorKind(8006, 400, "AiError: {}"),
        # the API layer in front of it
        ErrorKind(9106, 400, "Missing X-Auth-Key, X-Auth-Email or Authorization headers",
                  openai_type=_AUTH, openai_code="invalid_api_key", is_routing=True),
        ErrorKind(6003, 400, "Invalid request headers",
                  openai_type=_AUTH, openai_code="invalid_api_key", is_routing=True),
        ErrorKind(10000, 401, "Authentication error",
                  openai_type=_AUTH, openai_code="invalid_api_key", is_routing=True),
        ErrorKind(7000, 400, "No route for that URI", openai_code="unknown_url", is_routing=True),
        ErrorKind(7001, 405, "{} not supported for requested URI.", is_routing=True),
        ErrorKind(7003, 404, "Could not route to {}, perhaps your object identifier is invalid?", is_routing=True),
        ErrorKind(7009, 503, "Upstream service unavailable", openai_type=_SERVER, is_routing=True),
    )
}  # fmt: skip


class ApiError(TampuError):
    """A refusal with a code of the table.

    `detail` fills the hosted text's gap; `hint` is one plain sentence that default mode adds (`--strict` does not);
    `param` is the field at fault as a JSON path, for OpenAI's `error.param`; `status` overrides the table's.
    """

    def __init__(
        self,
        code: int,
        detail: str = "",
        *,
        hint: str = "",
        param: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        error_chain: tuple[tuple[int, str], ...] = (),
        preceding: tuple[ApiError, ...] = (),
    ) -> None:
        self.kind = KINDS[code]
        super().__init__(self.kind.text.replace("{}", detail))
        self.code = code
        self.detail = detail
        self.hint = hint
        self.param = param
        self.status = status if status is not None else self.kind.status
        self.headers = dict(headers or {})
        self.error_chain = error_chain
        self.preceding = preceding  # errors listed before this one in the v4 `errors` array

    def message(self, request_id: str, *, is_strict: bool) -> str:
        """The REST text: hosted wording, the hint (default mode), the request id (where the service shows it)."""
        text = _with_hint(str(self), "" if is_strict else self.hint)
        return f"{text} ({request_id})" if self.kind.shows_request_id else text

    def description(self, *, is_strict: bool) -> str:
        """The text a Worker sees after `<code>: `."""
        if self.kind.binding_text:
            text = self.kind.binding_text.replace("{}", self.detail)
        else:
            text = str(self).removeprefix("AiError: ").removeprefix("AiError: ")
        return _with_hint(text, "" if is_strict else self.hint)


def _with_hint(text: str, hint: str) -> str:
    if not hint:
        return text
    return f"{text} {hint}" if text.endswith((".", "!", "?")) else f"{text}. {hint}"


def to_api_error(error: BaseException, *, model: str = "") -> ApiError:
    """The table row for any exception; what is not meant for the user becomes 3043 without its text."""
    match error:
        case ApiError():
            return error
        case MockFaultError():
            return ApiError(error.code, "on demand", status=error.status)
        case ContextLengthError():
            return ApiError(5021, str(error), hint=error.hint, param=error.field)
        case InvalidRequestError():
            return ApiError(5006, str(error), hint=error.hint, param=error.field)
        case UnknownModelError():
            return ApiError(5007, error.model, hint=error.hint, param="model")
        case AdapterError():
            return ApiError(3030, str(error), param="lora")
        case JsonModeError():
            return ApiError(5024, hint=str(error))
        case OverloadedError():
            return ApiError(3040, hint=str(error), headers={"retry-after": str(error.retry_after_s)})
        case RequestAbortedError():
            return ApiError(3008)
        case EngineDeadError():
            return ApiError(3043, hint="The engine stopped after an internal failure; restart the server.", status=503)
        case _:
            return ApiError(3043)


def v4_body(error: ApiError, request_id: str, *, is_strict: bool) -> dict[str, Any]:
    """The v4 envelope: `{errors, success, result, messages}`."""
    entries: list[dict[str, Any]] = []
    for each in (*error.preceding, error):
        entry: dict[str, Any] = {"message": each.message(request_id, is_strict=is_strict), "code": each.code}
        if each.error_chain:
            entry["error_chain"] = [{"code": code, "message": text} for code, text in each.error_chain]
        entries.append(entry)
    return {
        "errors": entries,
        "success": False,
        "result": None if error.kind.is_routing else {},
        "messages": [],
    }


def binding_body(error: ApiError, request_id: str, *, is_strict: bool) -> dict[str, Any]:
    """What the Worker binding turns into a JavaScript error `name: <internalCode>: <description>`."""
    description = error.description(is_strict=is_strict)
    return {
        "internalCode": error.code,
        "name": "AiError",
        "description": description,
        "message": f"AiError: {description}",
        "httpCode": error.status,
        "requestId": request_id,
        "errors": [{"code": error.code, "message": description}],
        "success": False,
        "result": {},
        "messages": [],
    }


def openai_error(error: ApiError, request_id: str, *, is_strict: bool) -> dict[str, Any]:
    """OpenAI's inner object: `{message, type, code, param}`. Also what a frame of a broken stream carries."""
    return {
        "message": error.message(request_id, is_strict=is_strict),
        "type": error.kind.openai_type,
        "code": error.kind.openai_code or str(error.code),
        "param": error.param,
    }


def openai_body(error: ApiError, request_id: str, *, is_strict: bool) -> dict[str, Any]:
    """Both shapes at once: the v4 keys and a top-level `error` object."""
    body = v4_body(error, request_id, is_strict=is_strict)
    body["error"] = openai_error(error, request_id, is_strict=is_strict)
    return body
