"""What a Worker's `env.AI` calls: `POST /run?version=3` and its gateway twin. Bare results, errors as `{internalCode}`.

The binding sends neither account nor token and keeps the Worker's own Host; trust is by connection (see `auth`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tampu.api.account_path import check_account_id
from tampu.api.body import parse_json, read_body
from tampu.api.context import context_of, request_id_of
from tampu.api.errors import ApiError
from tampu.api.native_run import check_model, run_native
from tampu.api.replies import EventStream, json_reply
from tampu.api.run_docs import ERROR_RESPONSES, RUN_ANSWER
from tampu.core.errors import UnknownModelError

_PLAIN, _GATEWAY = "/run", "/ai-gateway/run"
_SUPPORTED_VERSIONS = ("", "3")
_RUN_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"inputs": {"type": "object"}, "options": {"type": "object"}},
                    "required": ["inputs"],
                }
            }
        },
    }
}
_RESPONSES = {200: RUN_ANSWER, **ERROR_RESPONSES}

router = APIRouter(tags=["Worker binding"])


@router.post(_PLAIN, summary="env.AI.run", responses=_RESPONSES, openapi_extra=_RUN_BODY)
async def run(request: Request) -> Response:
    """Run the model named in `cf-consn-model-id` on `inputs`."""
    return await _run(request, request.query_params, is_gateway=False)


@router.post(_GATEWAY, summary="env.AI.run through a gateway", responses=_RESPONSES, openapi_extra=_RUN_BODY)
async def run_through_gateway(request: Request) -> Response:
    """As `/run`; the gateway's own options (cache, retries, logs) are accepted and change nothing."""
    return await _run(request, request.query_params, is_gateway=True)


@router.get(_PLAIN, include_in_schema=False)
@router.get(_GATEWAY, include_in_schema=False)
async def run_over_websocket(request: Request) -> Response:
    """The binding's `websocket` option, which text generation has no use for."""
    raise ApiError(
        8001, "the option 'websocket' is not supported", param="websocket", hint="Use 'stream: true' instead."
    )


@router.post("/client/v4/accounts/{account_id}/ai/run/proxy", include_in_schema=False)
async def run_proxied(request: Request, account_id: str) -> Response:
    """How older Wranglers send a binding call: to an account's route, the binding's own URL in `X-Forwarded`."""
    request.scope["tampu.envelope"] = "binding"
    check_account_id(request, account_id)
    url = urlsplit(request.headers.get("x-forwarded", ""))
    if url.path not in (_PLAIN, _GATEWAY):
        raise ApiError(3003, "X-Forwarded", hint="It holds the binding's URL, which ends in /run.")
    return await _run(request, dict(parse_qsl(url.query)), is_gateway=url.path == _GATEWAY)


async def _run(request: Request, query: Mapping[str, str], *, is_gateway: bool) -> Response:
    context = context_of(request)
    if query.get("version", "") not in _SUPPORTED_VERSIONS:
        raise ApiError(5019, hint="This server speaks version 3 of the binding's protocol.")
    if "userInputs" in query:
        raise ApiError(
            8001,
            "binary inputs (streams and forms) are not supported by this text-only model",
            param="userInputs",
            hint="Send 'prompt' or 'messages' as plain values.",
        )
    model = _model_of(request)
    try:
        check_model(context, model)
    except UnknownModelError:
        if is_gateway:
            return _gateway_model_not_found(request)
        raise
    body = parse_json(await read_body(request, context.config.max_body_bytes))
    inputs = body.get("inputs") if isinstance(body, dict) else None
    options = body.get("options") if isinstance(body, dict) else None
    reply = await run_native(request, context, model=model, payload=inputs, options=options)
    headers = {"cf-ai-req-id": request_id_of(request), **reply.headers}
    if is_gateway:
        headers["cf-aig-log-id"] = request_id_of(request)
    if reply.frames is not None:
        return EventStream(reply.frames, headers)
    return json_reply(reply.result, headers=headers)


def _model_of(request: Request) -> str:
    """The model in `[<prefix>:]<model>`.

    Raises:
        ApiError: 3003 without the header.
    """
    value = request.headers.get("cf-consn-model-id", "")
    if not value:
        raise ApiError(3003, "cf-consn-model-id", hint="The AI binding sends it; a program must name the model there.")
    prefix, _, model = value.partition(":")
    return model or prefix


def _gateway_model_not_found(request: Request) -> Response:
    """On this path the hosted service answers in the gateway's words, not the model layer's."""
    error: dict[str, Any] = {
        "internalCode": 7003,
        "httpCode": 404,
        "name": "AiGatewayError",
        "description": "Model not found",
        "message": "AiGatewayError: Model not found",
        "requestId": request_id_of(request),
        "error": [{"code": 7003, "message": "Model not found"}],
        "success": False,
        "result": [],
        "messages": [],
    }
    return json_reply(error, status=404, headers={"cf-ai-req-id": request_id_of(request)})
