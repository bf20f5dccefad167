"""The catalogue's routes under each account. What they say is made in `catalogue`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tampu.api.account_path import check_account_id
from tampu.api.catalogue import (
    CatalogueEntry,
    build_catalogue,
    find_schema,
    search_authors,
    search_models,
    search_tasks,
)
from tampu.api.context import context_of
from tampu.api.replies import json_reply
from tampu.api.run_docs import ERROR_RESPONSES

router = APIRouter(prefix="/client/v4/accounts/{account_id}/ai", tags=["Catalogue"])
binding_router = APIRouter(tags=["Worker binding"])

Search = Callable[[Sequence[CatalogueEntry], Mapping[str, str]], dict[str, Any]]

_STRING: dict[str, Any] = {"type": "string"}
_PAGE: dict[str, Any] = {"type": "integer", "minimum": 1}
_PAGING = {"search": _STRING, "page": _PAGE, "per_page": _PAGE}
_FILTERS: dict[str, dict[str, Any]] = {
    "author": _STRING,
    "task": _STRING,
    "source": {"type": "integer"},
    "hide_experimental": {"type": "boolean"},
    "include_deprecated": {"type": "boolean"},
}


def _query(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """OpenAPI's spelling of query parameters."""
    return {"parameters": [{"in": "query", "name": name, "schema": dict(kind)} for name, kind in parameters.items()]}


@router.get(
    "/models/search",
    summary="Search models",
    responses=ERROR_RESPONSES,
    openapi_extra=_query({**_PAGING, **_FILTERS}),
)
async def models_search(request: Request, account_id: str) -> Response:
    """Models by name, task and author. A page beyond the end is empty."""
    return _reply(request, account_id, search_models)


@router.get(
    "/models/schema",
    summary="Input and output schema of a model",
    responses=ERROR_RESPONSES,
    openapi_extra={"parameters": [{"in": "query", "name": "model", "required": True, "schema": _STRING}]},
)
async def models_schema(request: Request, account_id: str) -> Response:
    """JSON Schemas of what the run endpoint takes and returns for one model."""
    return _reply(request, account_id, find_schema)


@router.get("/authors/search", summary="Search authors", responses=ERROR_RESPONSES, openapi_extra=_query(_PAGING))
async def authors_search(request: Request, account_id: str) -> Response:
    """Who made the models."""
    return _reply(request, account_id, search_authors)


@router.get("/tasks/search", summary="Search tasks", responses=ERROR_RESPONSES, openapi_extra=_query(_PAGING))
async def tasks_search(request: Request, account_id: str) -> Response:
    """What the models can do."""
    return _reply(request, account_id, search_tasks)


@binding_router.get(
    "/ai-api/models/search",
    summary="env.AI.models",
    responses=ERROR_RESPONSES,
    openapi_extra=_query({**_PAGING, **_FILTERS}),
)
async def binding_models_search(request: Request) -> Response:
    """The same search for the Worker binding, which names no account."""
    return _found(request, search_models)


def _reply(request: Request, account_id: str, search: Search) -> Response:
    check_account_id(request, account_id)
    return _found(request, search)


def _found(request: Request, search: Search) -> Response:
    services = context_of(request).services
    embedding = None if services.embeddings is None else services.embeddings.card
    return json_reply(search(build_catalogue(services.model_card, embedding), request.query_params))
