"""The REST run endpoint: `POST /client/v4/accounts/{account_id}/ai/run/{model}`, in the v4 envelope."""

from __future__ import annotations

from urllib.parse import unquote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tampu.api.account_path import check_account_id
from tampu.api.body import parse_json, read_body
from tampu.api.context import context_of, request_id_of
from tampu.api.native_run import NativeReply, check_model, run_native
from tampu.api.replies import EventStream, json_reply
from tampu.api.run_docs import ERROR_RESPONSES, RUN_ANSWER
from tampu.api.run_schema import INPUT_SCHEMA

_NOTE_CODE = 1000  # of remarks in the envelope's `messages`; the hosted service's own codes are not known

router = APIRouter(tags=["Workers AI"])


@router.post(
    "/client/v4/accounts/{account_id}/ai/run/{model:path}",
    summary="Run a model",
    responses={200: RUN_ANSWER, **ERROR_RESPONSES},
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": INPUT_SCHEMA}}}},
)
async def run(request: Request, account_id: str, model: str) -> Response:
    """Generate text from a prompt or a conversation; with `stream: true` as server-sent events."""
    context = context_of(request)
    check_account_id(request, account_id)
    model = _model_of(request, model)
    check_model(context, model)
    payload = parse_json(await read_body(request, context.config.max_body_bytes))
    reply = await run_native(
        request,
        context,
        model=model,
        payload=payload,
        options=payload.get("options") if isinstance(payload, dict) else None,
    )
    return enveloped(request, reply)


def enveloped(request: Request, reply: NativeReply) -> Response:
    """A reply as REST clients get it: streams bare, plain answers in the v4 envelope."""
    headers = {"cf-ai-req-id": request_id_of(request), **reply.headers}
    if reply.frames is not None:
        return EventStream(reply.frames, headers)
    messages = [{"code": _NOTE_CODE, "message": note} for note in reply.notes]
    return json_reply({"result": reply.result, "success": True, "errors": [], "messages": messages}, headers=headers)


def _model_of(request: Request, decoded: str) -> str:
    """The model as the raw path spells it, decoded once: `@cf/meta/x` equals `@cf%2Fmeta%2Fx`."""
    raw_path = request.scope.get("raw_path")
    if not isinstance(raw_path, bytes):
        return decoded
    parts = raw_path.decode("ascii", "replace").split("/", 7)  # "", client, v4, accounts, id, ai, run, model
    return unquote(parts[7]) if len(parts) == 8 else decoded
