"""Request bodies: bounded while they arrive, parsed as JSON whatever the content type says."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from tampu.api.errors import ApiError
from tampu.core.json_text import read_json


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """The whole body. Raises ApiError 3006 as soon as it is known to be too large, 3008 when the client goes away."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > max_body_bytes:
        raise _too_large(max_body_bytes)
    chunks = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_body_bytes:
                raise _too_large(max_body_bytes)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ApiError(3008) from None
    return b"".join(chunks)


def _too_large(max_body_bytes: int) -> ApiError:
    return ApiError(
        3006,
        f"the body is longer than {max_body_bytes} bytes",
        hint="Send less in one request.",
    )


def parse_json(body: bytes) -> Any:
    """The JSON value of a body. Raises ApiError 3003 for an empty body, 5006 for anything that is not JSON.

    As in JavaScript, a byte order mark is skipped and the last of two equal keys wins; an unpaired surrogate escape
    becomes U+FFFD, because no tokenizer can read it.
    """
    if not body.strip():
        raise ApiError(3003, "body", hint="Send a JSON object with 'prompt' or 'messages' as the request body.")
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        first_problem = error
    try:
        # The slow parser accepts what browsers do: unpaired surrogates, invalid UTF-8, deeper nesting.
        return read_json(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        where = f"line {first_problem.lineno} column {first_problem.colno}"
        raise ApiError(
            5006,
            f"the body is not valid JSON ({first_problem.msg}: {where})",
            hint="Send one JSON object in UTF-8.",
        ) from None
