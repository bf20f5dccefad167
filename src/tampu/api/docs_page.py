"""`/docs`: the routes of this server, made from the OpenAPI document. No script, nothing from outside.

It is open to everybody: a browser cannot send a token with a link. So it may say only what is the same on every server:
no version, no model, no setting, nothing that is stored.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_STYLE = """
:root { color-scheme: light dark; --line: #d8d8d8; --dim: #5c5c5c; --code: #f3f3f3; }
@media (prefers-color-scheme: dark) { :root { --line: #3c3c3c; --dim: #a8a8a8; --code: #262626; } }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
h2 { margin: 2rem 0 0.5rem; font-size: 1.1rem; }
table { width: 100%; border-collapse: collapse; }
td { padding: 0.35rem 0.75rem 0.35rem 0; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child { width: 4rem; color: var(--dim); }
td:last-child { width: 40%; }
code { padding: 0.1rem 0.25rem; border-radius: 4px; background: var(--code); overflow-wrap: anywhere; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_TOP = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tampu: routes</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>Tampu</h1>
<p>The routes of this server. Parameters, answers and errors of each are in the OpenAPI document,
<a href="/openapi.json"><code>/openapi.json</code></a>. On a server with API tokens that document and every route want
<code>Authorization: Bearer &lt;token&gt;</code>, except <code>/health</code>, <code>/ready</code> and this page,
and the Worker binding on the same machine.</p>
"""
_BOTTOM = "</body>\n</html>\n"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page."""
    return HTMLResponse(routes_page(request.app.openapi()), headers=_HEADERS)


def routes_page(document: dict[str, Any]) -> str:
    """The page over an OpenAPI document: one table a tag, one row a route."""
    tables: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            row = _row(method.upper(), path, operation["summary"])
            tables.setdefault(operation["tags"][0], []).append(row)
    return "".join((_TOP, *_tables(tables), _BOTTOM))


def _tables(tables: dict[str, list[str]]) -> Iterator[str]:
    for title, rows in tables.items():
        yield f"<h2>{escape(title[:1].upper() + title[1:])}</h2>\n<table>\n{''.join(rows)}</table>\n"


def _row(method: str, path: str, summary: str) -> str:
    return f"<tr><td>{escape(method)}</td><td><code>{escape(path)}</code></td><td>{escape(summary)}</td></tr>\n"
