"""What every route of one app shares, reached through the request. Built by `create_app`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from tampu.api.auth import PRINCIPAL, Principal
from tampu.api.config import ServerConfig
from tampu.serving.services import Services


@dataclass(frozen=True, slots=True)
class AppContext:
    """Services and settings."""

    services: Services
    config: ServerConfig


def context_of(request: Request) -> AppContext:
    """The context of the app that serves this request."""
    return cast(AppContext, request.app.state.context)


def request_id_of(request: Request) -> str:
    """The UUID of this request, as the client sees it in `cf-ai-req-id`."""
    return cast(str, request.scope["tampu.request_id"])


def tenant_of(request: Request) -> str:
    """The prefix-cache namespace of whoever was let in."""
    principal = request.scope.get("state", {}).get(PRINCIPAL)
    return principal.tenant if isinstance(principal, Principal) else ""
