"""The model page's curl and Python examples, as printed there apart from host, account and token."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from live_server import live
from scripted_server import ACCOUNT, Server
from tampu.api.app import create_app
from tampu.api.config import ServerConfig

HOSTED = "https://api.cloudflare.com"

CURL = """\
curl https://api.cloudflare.com/client/v4/accounts/$CLOUDFLARE_ACCOUNT_ID/ai/run/@cf/meta/llama-3.1-8b-instruct-fast \\
  -X POST \\
  -H "Authorization: Bearer $CLOUDFLARE_AUTH_TOKEN" \\
  -d '{ "messages": [{ "role": "system", "content": "You are a friendly assistant" }, \
{ "role": "user", "content": "Why is pizza so good" }]}'
"""

PYTHON = """\
import os
import requests


ACCOUNT_ID = "your-account-id"
AUTH_TOKEN = os.environ.get("CLOUDFLARE_AUTH_TOKEN")


prompt = "Tell me all about PEP-8"
response = requests.post(
  f"https://api.cloudflare.com/client/v4/accounts/{ACCOUNT_ID}/ai/run/@cf/meta/llama-3.1-8b-instruct-fast",
    headers={"Authorization": f"Bearer {AUTH_TOKEN}"},
    json={
      "messages": [
        {"role": "system", "content": "You are a friendly assistant"},
        {"role": "user", "content": prompt}
      ]
    }
)
result = response.json()
print(result)
"""


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """The address of a live server over the scripted runner."""
    with live(create_app(server.services, ServerConfig())) as address:
        yield address


def run(program: list[str]) -> str:
    environment = {"CLOUDFLARE_ACCOUNT_ID": ACCOUNT, "CLOUDFLARE_AUTH_TOKEN": "token", "PATH": "/usr/bin:/bin"}
    finished = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return finished.stdout


def test_curl(url: str) -> None:
    body = json.loads(run(["sh", "-c", CURL.replace(HOSTED, url)]))
    assert body["success"] is True
    assert body["result"]["response"] == "Hello, world"


def test_python(url: str) -> None:
    printed = run([sys.executable, "-c", PYTHON.replace(HOSTED, url)])
    assert "'response': 'Hello, world'" in printed
    assert "'success': True" in printed
