"""Routes for whoever runs the server: alive, ready, metrics. Knows nothing of models."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tampu.api.context import context_of
from tampu.api.replies import json_reply
from tampu.api.run_docs import ERROR_RESPONSES
from tampu.serving.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"])


@router.get("/health", summary="The process is alive", responses={503: {"description": "The engine failed"}})
async def health(request: Request) -> Response:
    """200 while the engine lives; 503 for ever once it failed, so that a supervisor restarts the process."""
    state = context_of(request).services.engine.health()
    body = {"status": "ok" if state.is_alive else "failed"}
    return json_reply(body, status=200 if state.is_alive else 503)


@router.get("/ready", summary="The server can answer now", responses={503: {"description": "Not ready"}})
async def ready(request: Request) -> Response:
    """200 when a request would be served now, 503 while loading, draining or after a failure."""
    services = context_of(request).services
    state = services.engine.health()
    body = {"status": "ready" if state.is_ready else "not ready", "model": services.model_card.name}
    return json_reply(body, status=200 if state.is_ready else 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={status: ERROR_RESPONSES[status] for status in (400, 401, 403)},
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(
        context_of(request).services.metrics.render(), media_type=None, headers={"content-type": CONTENT_TYPE}
    )
