"""The Workers toolchain, unmodified, on the model page's own examples: plain workerd, Miniflare, Wrangler, Vitest.

Every file and command comes from `tampu worker`, so what it prints is what runs here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from node_tools import NODE_FOLDER, NodeTools, get

from tampu.cli.worker import DEFAULT_ADDRESS, SETUPS, snippet

pytestmark = pytest.mark.node

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MODEL = "@cf/meta/llama-3.1-8b-instruct-fast"
EXAMPLES = NODE_FOLDER / "workers"
PRODUCTION = json.dumps(
    {"name": "my-worker", "main": "src/index.ts", "compatibility_date": "2025-01-01", "ai": {"binding": "AI"}}
)
# How a test tells a tool its port, which a reader leaves at the tool's default.
PORT_FLAGS = {
    "workerd": " --socket-addr http=127.0.0.1:{port}",
    "miniflare": "",
    "wrangler": " --port {port} --inspector-port 0",
}


def frames_of(text: str) -> list[dict[str, Any]]:
    """The JSON frames of a stream that ends with `[DONE]`."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(stream: str) -> str:
    """The answer in a stream's frames."""
    return "".join(frame["response"] for frame in frames_of(stream))


def set_up(node: NodeTools, folder: Path, name: str, worker: str) -> Path:
    """A project with `worker` as its Worker, an untouched production configuration and the printed file."""
    setup = SETUPS[name]
    files = {
        "src/index.ts": (EXAMPLES / worker).read_text(encoding="utf-8"),
        "wrangler.jsonc": PRODUCTION,
        setup.file: snippet(name, node.address),
    }
    project = node.project(folder, files)
    for command in setup.prepare:
        node.run(command, project)
    return project


@pytest.mark.parametrize("name", PORT_FLAGS)
def test_the_pages_examples_run(node: NodeTools, tmp_path: Path, name: str) -> None:
    run = SETUPS[name].run + PORT_FLAGS[name]
    with node.running(run, set_up(node, tmp_path / "plain", name, "plain.ts")) as origin:
        plain = get(origin)
    with node.running(run, set_up(node, tmp_path / "streaming", name, "streaming.ts")) as origin:
        streamed = get(origin)
    assert plain.status_code == streamed.status_code == 200
    assert plain.headers["content-type"] == "application/json"
    assert streamed.headers["content-type"] == "text/event-stream"
    answer = plain.json()
    assert answer["response"]
    assert answer["usage"]["completion_tokens"] > 0
    assert text_of(streamed.text) == answer["response"]
    assert frames_of(streamed.text)[-1]["usage"]["total_tokens"] == answer["usage"]["total_tokens"]


def test_the_pages_examples_run_in_vitest(node: NodeTools, tmp_path: Path) -> None:
    test = (EXAMPLES / "worker.test.ts").read_text(encoding="utf-8")
    for worker in ("plain.ts", "streaming.ts"):
        project = set_up(node, tmp_path / worker, "vitest", worker)
        (project / "worker.test.ts").write_text(test, encoding="utf-8")
        assert "2 passed" in node.run(SETUPS["vitest"].run, project)


def test_the_runtimes_binding_behaves_as_documented(node: NodeTools, tmp_path: Path) -> None:
    project = set_up(node, tmp_path, "workerd", "probe.mjs")
    with node.running(SETUPS["workerd"].run + PORT_FLAGS["workerd"], project) as origin:
        check_report(get(origin).json())


def test_wrangler_runs_the_derived_configuration(node: NodeTools, tmp_path: Path) -> None:
    production = (EXAMPLES / "wrangler.toml").read_text(encoding="utf-8")
    probe = (EXAMPLES / "probe.mjs").read_text(encoding="utf-8")
    project = node.project(tmp_path, {"wrangler.toml": production, "src/index.ts": probe})
    node.run(f"npx tampu-workers local --url {node.server_url}", project)
    assert (project / "wrangler.toml").read_text(encoding="utf-8") == production
    with node.running(SETUPS["wrangler"].run + PORT_FLAGS["wrangler"], project) as origin:
        check_report(get(origin).json())
    # In Node.js, where frameworks ask for the bindings, our own object stands in for the runtime's.
    check_report(node.script(f"platform-proxy.mjs {project / 'wrangler.local.jsonc'}"))


def test_the_derived_configuration_suits_the_version(node: NodeTools) -> None:
    report = node.script("local-config.mjs")
    url = "http://127.0.0.1:8900"
    dev = {"plugin": {"package": "tampu-workers", "name": "tampu-ai"}, "options": {"url": url}}
    as_service = {"name": "w", "services": [{"binding": "DB"}, {"binding": "AI", "service": "tampu", "dev": dev}]}
    as_unsafe = {
        "name": "w",
        "services": [{"binding": "DB"}],
        "unsafe": {"bindings": [{"name": "AI", "type": "tampu", "dev": dev}]},
    }
    assert report["4.108.0"] == report["5.0.0"] == as_service
    assert report["4.107.0"] == as_unsafe
    assert report["environments"] == {
        "env": {"staging": {"services": [{"binding": "MODEL", "service": "tampu", "dev": dev}]}, "other": {"vars": {}}}
    }
    assert "has no AI binding" in report["none"]


@pytest.mark.parametrize(
    ("flags", "name", "prefix"),
    [([], "Error", "AiError: "), (["enhanced_error_serialization"], "AiError", "")],
    ids=["as shipped", "errors with names"],
)
def test_a_service_binding_answers_too(
    node: NodeTools, tmp_path: Path, flags: list[str], name: str, prefix: str
) -> None:
    services = {"services": [{"binding": "AI", "service": "tampu-ai"}]}
    caller = {"name": "my-worker", "main": "src/index.ts", "compatibility_date": "2025-01-01", **services}
    caller["compatibility_flags"] = flags
    entrypoint = NODE_FOLDER.parents[2] / "integrations" / "workers" / "worker" / "wrangler.jsonc"
    behind = entrypoint.read_text(encoding="utf-8").replace(DEFAULT_ADDRESS, node.address)
    files = {
        "wrangler.local.jsonc": json.dumps(caller),
        "src/index.ts": (EXAMPLES / "probe.mjs").read_text(encoding="utf-8"),
        "tampu/wrangler.jsonc": behind.replace(
            '"../src/entrypoint.js"', f'"./entrypoint.js", "compatibility_flags": {json.dumps(flags)}'
        ),
        "tampu/entrypoint.js": 'export { TampuAI as default } from "tampu-workers/entrypoint";',
    }
    command = "npx wrangler dev -c wrangler.local.jsonc -c tampu/wrangler.jsonc" + PORT_FLAGS["wrangler"]
    with node.running(command, node.project(tmp_path, files)) as origin:
        report = get(origin).json()
    # What crosses the binding is copied: no properties, and no AbortSignal.
    assert 'does not implement the method "lastRequestId"' in report.pop("lastRequestId")["message"]
    assert report.pop("status") == [None, None]
    assert report.pop("abortedBefore")["message"] == "AbortSignal serialization is not enabled."
    assert report.pop("abortedAfter") is None
    check_answers(report, name, prefix)


def check_report(report: dict[str, Any]) -> None:
    """What `probe.mjs` must report of a binding in the same isolate."""
    assert UUID.fullmatch(report["lastRequestId"])
    assert report["status"] == [400, 5007]
    assert report["abortedBefore"]["name"] == "AbortError"
    assert report["abortedAfter"] in ("AbortError", "ended")  # a short stream may be complete before the abort
    check_answers(report)


def check_answers(report: dict[str, Any], error_name: str = "AiError", prefix: str = "") -> None:
    """What `probe.mjs` must report of any binding; `prefix` stands before the messages of errors."""
    answer = report["json"]["response"]
    assert answer
    assert report["stream"]["isStream"] is True
    assert text_of(report["stream"]["text"]) == answer
    raw = report["raw"]
    assert (raw["isResponse"], raw["status"], raw["type"]) == (True, 200, "application/json")
    assert UUID.fullmatch(raw["id"])
    assert raw["body"]["response"] == answer
    for refused in (report["badInput"], report["badStream"]):
        assert refused["name"] == error_name
        assert refused["message"].startswith(f"{prefix}5006: ")
        assert "'/temperature' must be <= 5" in refused["message"]
    assert report["unknownModel"]["name"] == error_name
    assert report["unknownModel"]["message"].startswith(f"{prefix}5007: No such model @cf/none/such or task")
    assert MODEL in report["models"]
    assert report["fetch"] == 200
    assert "binary inputs" in report["binary"]["message"]
