"""The OpenAPI document against the server: every route is described, and no generated request finds a surprise.

Requests are generated from the document itself, well-formed and malformed; the run is small and its seed is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from fake_embedder import FakeEmbedder
from scripted_server import Server
from tampu.api.app import create_app
from tampu.api.auth import AccessControl, AccessPolicy
from tampu.api.config import ServerConfig

_MAX_EXAMPLES = 6  # of each kind for each operation
_CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance)


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    """The document of a server that has every feature."""
    server = Server()
    services = replace(server.services, embeddings=FakeEmbedder())
    access = AccessControl(AccessPolicy(allowed_hosts=("testserver",)))
    app = create_app(services, ServerConfig(), access=access)
    schemathesis.openapi.format("binary", strategies.text())  # of the page's `image`; bytes cannot be put into JSON
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    server.close()
    assert server.generator.num_open_requests == 0


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_generated_request_finds_a_5xx_or_an_undocumented_answer(document: Any, mode: GenerationMode) -> None:
    config = settings(
        max_examples=_MAX_EXAMPLES,
        phases=(Phase.generate,),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    num_cases = 0
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.path.startswith("/v1/"):
            continue  # the same functions as under an account

        @config
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            nonlocal num_cases
            num_cases += 1
            case.call_and_validate(checks=_CHECKS)

        try:
            ask()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label  # nothing about it can be wrong
    assert num_cases > 50


async def test_every_route_is_described(server: Server, client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    paths = document["paths"]
    account = "/client/v4/accounts/{account_id}/ai"
    expected = {
        account + "/run/{model}",
        *(account + f"/{kind}/search" for kind in ("models", "authors", "tasks")),
        account + "/models/schema",
        *(prefix + path for prefix in ("/v1", account + "/v1") for path in (
            "/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/models/{model}")),
        "/run",
        "/ai-gateway/run",
        "/ai-api/models/search",
        "/health",
        "/ready",
        "/metrics",
    }  # fmt: skip
    assert expected <= set(paths)
    operation_ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(operation_ids) == len(set(operation_ids))
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation["summary"], (path, method)
            if method == "post":
                assert operation["requestBody"]["content"]["application/json"]["schema"], path
