"""What every route of one app shares, reached through the request. Built by `create_app`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from starlette.requests import Request
from starlette.types import Scope

from tampu.api.config import ServerConfig
from tampu.serving.services import Services

RUN_PERMISSION = "workers-ai:read"
WRITE_PERMISSION = "workers-ai:write"


class Authorize(Protocol):
    """Decides on the path that was routed, never on a header that names another one."""

    def __call__(self, scope: Scope, account_id: str | None, permission: str) -> None:
        """Return when allowed; raise ApiError when not. `account_id` None = the route belongs to no account."""


@dataclass(frozen=True, slots=True)
class AppContext:
    """Services, settings and the door-keeper."""

    services: Services
    config: ServerConfig
    authorize: Authorize


def context_of(request: Request) -> AppContext:
    """The context of the app that serves this request."""
    return cast(AppContext, request.app.state.context)


def request_id_of(request: Request) -> str:
    """The UUID of this request, as the client sees it in `cf-ai-req-id`."""
    return cast(str, request.scope["tampu.request_id"])
