"""The app factory: routers, error envelopes, the outermost gate. Builds nothing that outlives the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

import tampu
from tampu.api import binding, catalogue_routes, docs_page, openai, operations, workers_ai
from tampu.api.auth import LOCAL_ORIGIN, AccessControl, AccessMiddleware, AccessPolicy
from tampu.api.config import ServerConfig
from tampu.api.context import AppContext
from tampu.api.errors import ApiError, binding_body, openai_body, to_api_error, v4_body
from tampu.api.gateway_path import GatewayPath
from tampu.api.middleware import RequestGate
from tampu.api.remote_proxy import RemoteProxy
from tampu.api.replies import json_reply
from tampu.core.errors import TampuError
from tampu.serving.services import Services

_ROUTERS = (  # the first route that fits takes a request
    operations.router,
    docs_page.router,
    binding.router,
    workers_ai.router,
    catalogue_routes.router,
    catalogue_routes.binding_router,
    openai.local_router,
    openai.hosted_router,
)
_EXPOSED_HEADERS = ("cf-ai-req-id", "cf-ai-neurons", "cf-ray", "retry-after", "x-tampu-ignored")
_BINDING_PREFIXES = ("/ai-gateway/", "/ai-api/")


def create_app(services: Services, config: ServerConfig, *, access: AccessControl | None = None) -> FastAPI:
    """The ASGI app of one server. `access` None = open to programs on this machine (see `auth`)."""
    app = FastAPI(
        title="Tampu",
        version=getattr(tampu, "__version__", "0"),
        summary="Workers AI's wire formats over a local Llama engine.",
        redirect_slashes=False,
        docs_url=None,  # the framework's pages load their scripts from other hosts; ours is `docs_page`
        redoc_url=None,
        lifespan=_lifespan,
    )
    context = AppContext(services, config)
    app.state.context = context
    services.metrics.watch(services.engine)
    for router in _ROUTERS:
        app.include_router(router)

    def render(scope: Scope, error: BaseException) -> Response:
        return render_error(scope, error, context)

    async def on_error(request: Request, error: Exception) -> Response:
        return render(request.scope, error)

    app.add_exception_handler(TampuError, on_error)
    app.add_exception_handler(HTTPException, on_error)
    if access is None:
        access = AccessControl(AccessPolicy(bind_host=config.host, is_strict=config.is_strict), services.tokens)
    if services.model_card.is_mock:
        from tampu.api.mock_faults import MockFaults

        app.add_middleware(MockFaults)  # innermost: it reads the headers that the proxy layer unwraps
    app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(GatewayPath)
    app.add_middleware(RemoteProxy)
    app.add_middleware(RequestGate, config=config, render_error=render)
    app.add_middleware(  # outermost: a page of ours may read refusals, too
        CORSMiddleware,
        allow_origins=access.policy.allowed_origins,
        allow_origin_regex=LOCAL_ORIGIN,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED_HEADERS,
        allow_private_network=True,
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Serve from the first request to the last; whoever built the services closes them."""
    app.state.context.services.generator.start()
    yield


def render_error(scope: Scope, error: BaseException, context: AppContext) -> Response:
    """The error in the envelope of the protocol that the path belongs to."""
    known = _routing_error(scope, error) if isinstance(error, HTTPException) else to_api_error(error)
    context.services.metrics.count_refused(known.code)
    request_id = scope["tampu.request_id"]
    body = _envelope(scope)(known, request_id, is_strict=context.config.is_strict)
    headers = dict(known.headers)
    if not known.kind.is_routing:
        headers["cf-ai-req-id"] = request_id
    return json_reply(body, status=known.status, headers=headers)


def _envelope(scope: Scope) -> Any:
    path = scope["path"]
    if scope.get("tampu.envelope") == "binding" or path == "/run" or path.startswith(_BINDING_PREFIXES):
        return binding_body
    if path.startswith("/v1/") or path == "/v1" or "/ai/v1" in path:
        return openai_body
    return v4_body


def _routing_error(scope: Scope, error: HTTPException) -> ApiError:
    """What the hosted API layer says when no route takes a request."""
    path = scope["path"]
    if error.status_code == 405:
        return ApiError(7001, scope["method"], headers=error.headers)
    if path.startswith("/client/v4"):
        is_nameless = "/accounts//" in path  # the page's curl example with its variable not set
        return ApiError(7000, hint="The account id in the URL is empty: put any word there." if is_nameless else "")
    return ApiError(7000, status=error.status_code, hint="See /docs for the routes of this server.")
