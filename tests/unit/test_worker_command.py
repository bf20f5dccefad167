"""`tampu worker`: the texts it prints are the snippets, with the reader's address in them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tampu.cli.main import app as tampu
from tampu.cli.worker import DEFAULT_ADDRESS, SETUPS, snippet, worker
from tampu.core.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]

app = typer.Typer()
app.command()(worker)


@pytest.mark.parametrize("name", SETUPS)
def test_the_printed_file_names_the_readers_server(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--port", "9123"])
    assert result.exit_code == 0
    assert snippet(name, "127.0.0.1:9123").rstrip() in result.stdout
    assert DEFAULT_ADDRESS not in result.stdout
    for command in (*SETUPS[name].prepare, SETUPS[name].run):
        assert command in result.stdout


def test_an_ipv6_server_is_written_in_brackets() -> None:
    result = CliRunner().invoke(app, ["workerd", "--host", "::1"])
    assert 'address = "[::1]:8900"' in result.stdout
    assert "http://[::1]:8900" in result.stdout


@pytest.mark.parametrize("host", ["", " ", "[::1]", "http://x", "x:8900", "a/b", '"', "a b", ":", "1::2::3"])
def test_a_host_that_no_file_can_hold_is_refused(host: str) -> None:
    result = CliRunner().invoke(app, ["workerd", f"--host={host}"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(f"host: {host!r} is not a host name or an address")


@pytest.mark.parametrize("port", ["0", "99999", "-1"])
def test_an_impossible_port_is_refused(port: str) -> None:
    result = CliRunner().invoke(tampu, ["worker", "workerd", f"--port={port}"])
    assert result.exit_code == 2
    assert f"'{port}' is not a whole number from 1 to 65535" in result.output


@pytest.mark.node
def test_the_npm_command_refuses_a_url_that_is_no_server(tmp_path: Path) -> None:
    command = ["node", str(REPOSITORY / "integrations" / "workers" / "src" / "cli.js"), "local", "--url"]
    for url in (
        "notaurl",
        "",
        "localhost:8900",
        "ftp://127.0.0.1",
        "http://127.0.0.1:99999",
        "http://x/path",
        "http://u@x",
    ):
        done = subprocess.run([*command, url], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f'tampu-workers: --url "{url}" is not the address of a server' in done.stderr
    assert list(tmp_path.iterdir()) == []
    # A good one comes as far as looking for Wrangler.
    done = subprocess.run([*command, "http://[::1]:8900/"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Wrangler is not installed" in done.stderr


@pytest.mark.parametrize("name", SETUPS)
def test_a_snippet_names_the_server_once(name: str) -> None:
    assert snippet(name).count(DEFAULT_ADDRESS) == 1


def test_the_file_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["workerd", "--write", str(tmp_path)])
    assert result.exit_code == 0
    assert (tmp_path / "tampu.capnp").read_text(encoding="utf-8") == snippet("workerd")
    refused = CliRunner().invoke(app, ["workerd", "--write", str(tmp_path)])
    assert isinstance(refused.exception, ConfigError)
    assert "exists already" in str(refused.exception)


def test_wranglers_file_is_derived_from_the_readers_own(tmp_path: Path) -> None:
    """One of ours would carry another Worker's name, and a form that only some versions take."""
    command = "npx tampu-workers local --url http://127.0.0.1:9123"
    printed = CliRunner().invoke(app, ["wrangler", "--port", "9123"]).stdout
    assert printed.index(command) < printed.index('"plugin"') < printed.index("Wrangler 4.108 and newer")
    refused = CliRunner().invoke(app, ["wrangler", "--port", "9123", "--write", str(tmp_path)])
    assert isinstance(refused.exception, ConfigError)
    assert command in str(refused.exception)
    assert list(tmp_path.iterdir()) == []
    page = (REPOSITORY / "docs" / "workers.md").read_text(encoding="utf-8")
    assert "In Wrangler 4.108 and newer it looks like this" in page


def test_an_unknown_set_up_is_refused_with_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["deno"])
    assert isinstance(result.exception, ConfigError)
    assert "'deno' is not one of workerd, miniflare, wrangler, vitest" in str(result.exception)


@pytest.mark.parametrize("name", SETUPS)
def test_the_documentation_shows_the_file_that_is_printed(name: str) -> None:
    page = (REPOSITORY / "docs" / "workers.md").read_text(encoding="utf-8")
    shown = re.search(rf"<!-- snippet: {name} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == snippet(name)


@pytest.mark.parametrize(("name", "language"), [("workerd", "capnp"), ("vitest", "ts"), ("miniflare", "js")])
def test_the_excerpt_in_a_guide_is_part_of_the_printed_file(name: str, language: str) -> None:
    guide = (REPOSITORY / "integrations" / "workers" / "guides" / f"{name}.md").read_text(encoding="utf-8")
    excerpt = re.search(rf"```{language}\n(.*?)```", guide, re.DOTALL)
    assert excerpt is not None
    printed = {line.strip() for line in snippet(name).splitlines()}
    assert {line.strip() for line in excerpt[1].splitlines()} <= printed


def test_every_compatibility_date_is_early() -> None:
    """A runtime refuses dates after its own, and the tools that suit an older Node.js bring an older runtime."""
    integration = REPOSITORY / "integrations" / "workers"
    texts = [snippet(name) for name in SETUPS]
    files = (
        REPOSITORY / "docs" / "workers.md",
        integration / "worker" / "wrangler.jsonc",
        *integration.glob("**/*.md"),
    )
    texts += [path.read_text(encoding="utf-8") for path in files]
    dates = [date for text in texts for date in re.findall(r'ompatibility_?[dD]ate\W+(\d{4}-\d\d-\d\d)"', text)]
    assert len(dates) >= 7
    assert set(dates) == {"2025-01-01"}
