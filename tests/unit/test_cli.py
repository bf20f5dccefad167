"""The command line: help, version, errors as one sentence, and a documentation page that cannot go stale."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from checkpoints import LLAMA3_SPECIALS, TINY, random_weights, write_gguf, write_hf_folder
from tampu import __version__
from tampu.api.auth import AccessPolicy
from tampu.api.config import ServerConfig
from tampu.cli.composition import EngineSettings, load_model
from tampu.cli.main import app, main
from tampu.cli.messages import FLAGS
from tampu.cli.mock_options import MODEL_OPTIONS, TOKEN_OPTIONS
from tampu.cli.reference import reference
from tampu.cli.serve import banner_facts, step_budget
from tampu.cli.server_process import bind, join_address
from tampu.core.config import MAX_NUM_THREADS, CpuRunnerConfig, EngineConfig
from tampu.core.errors import ConfigError
from tampu.store.database import open_database
from tampu.store.tokens import TokenStore

ROOT = Path(__file__).parents[2]


def test_page_matches_the_commands() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"tampu {__version__}\n"


@pytest.mark.parametrize("command", [["serve"], ["run"], ["models"], ["worker"], ["token", "create"]])
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_our_errors_are_one_sentence_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr("sys.argv", ["tampu", "run", "hello", "--model", str(broken)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(broken) in lines[0]


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            bind("127.0.0.1", port)
        assert caught.value.setting == "port"
        assert "--port (with make: PORT=…)" in caught.value.reason


@pytest.mark.parametrize("host", ["300.1.1.1", "nosuchhost.invalid", "[::1]", "192.0.2.1", "é" * 70, "a\0b"])
def test_a_host_that_is_not_this_machine_is_not_the_ports_fault(host: str) -> None:
    with pytest.raises(ConfigError, match=f"^host: {re.escape(repr(host))} is no address of this machine") as caught:
        bind(host, 0)
    assert "another" not in str(caught.value)


def test_an_address_is_written_as_in_urls() -> None:
    assert join_address("127.0.0.1", 8900) == "127.0.0.1:8900"
    assert join_address("::1", 8900) == "[::1]:8900"


def test_a_public_bind_without_a_token_is_refused_with_the_command_that_fixes_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "tampu token create" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mock", "--model", "/nope", "--runner", "gpu", "--isa", "zzz"], "--model, --isa, --runner: without effect"),
        (["--mock", "--no-prefix-caching"], "--prefix-caching: without effect"),
        (["--mock-script", "replies.yaml", "--threads", "2"], "--threads: without effect"),
        (["--mock", "--data-dir", "/nope"], "--data-dir: without effect"),
        (["--mock-script", "/nope.yaml"], "mock script /nope.yaml: cannot be read"),
    ],
)
def test_what_a_mock_cannot_use_is_refused(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(named)


def test_a_mock_script_makes_a_mock_and_the_environment_may_speak_of_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "replies.json"
    script.write_text('["hello"]')
    monkeypatch.setattr("tampu.cli.serve.run_server", lambda server, listener, drain_seconds: server.close())
    for variable, value in (("TAMPU_MODEL", "/nope"), ("TAMPU_DATA_DIR", "/nope"), ("TAMPU_THREADS", "2")):
        monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--mock-script", str(script), "--strict"])
    assert result.exception is None
    assert "Tampu mock" in result.output
    assert str(script) in result.output


def test_the_options_refused_beside_the_mock_are_options_of_serve() -> None:
    known = {parameter.name for parameter in typer.main.get_command(app).commands["serve"].params}
    assert known >= MODEL_OPTIONS | TOKEN_OPTIONS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["serve", "--port", "99999"],
            "'--port' / '-p' (env var: 'TAMPU_PORT'): '99999' is not a whole number from 0 to",
        ),
        (["serve", "--port", "x"], "'x' is not a whole number from 0 to 65535"),
        (
            ["serve", "--threads", "100000"],
            "'--threads' (env var: 'TAMPU_THREADS'): '100000' is not a whole number from",
        ),
        (["serve", "--max-num-seqs", "70000"], "'70000' is not a whole number from 1 to 65535"),
        (["serve", "--max-num-batched-tokens", "9999999999"], "'9999999999' is not a whole number from 1 to 1048576"),
        (["serve", "--max-num-waiting", "0"], "'0' is not a whole number of at least 1"),
        (["serve", "--request-timeout", "nan"], "'nan' is not a number of at least 0.001"),
        (["serve", "--request-timeout", "inf"], "'inf' is not a number of at least 0.001"),
        (["run", "hi", "--temperature", "5.5"], "'--temperature' / '-t': '5.5' is not a number from 0 to 5"),
    ],
)
def test_a_wrong_number_is_refused_with_its_flag_its_value_and_the_range(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("num_threads", [0, MAX_NUM_THREADS + 1])
def test_an_impossible_number_of_threads_is_not_the_models_fault(num_threads: int) -> None:
    with pytest.raises(ConfigError, match=f"num_threads: {num_threads} is not between 1 and 1024"):
        CpuRunnerConfig(num_threads=num_threads)


@pytest.mark.parametrize("setting", ["max_num_seqs", "max_num_batched_tokens", "max_num_waiting"])
def test_a_budget_below_one_is_refused_with_its_value(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting}: -1 is not at least 1"):
        EngineConfig(**{setting: -1})


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    monkeypatch.setattr("sys.argv", ["tampu", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_setting_is_named_by_its_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(write_gguf(tmp_path / "tiny.gguf", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS))
    for arguments, start in (
        (("run", "hi", "--model", model, "--kv-cache-mb", "100000000"), "--kv-cache-mb: 100000000 MiB do not fit"),
        (("run", "hi", "--model", model, "--kv-cache-dtype", "q4"), "--kv-cache-dtype: 'q4' is not one of f16, q8"),
        (("serve", "--port", "0", "--allowed-origin", "*"), "--allowed-origin: '*' is not scheme://host[:port]"),
        (("token", "list", "--data-dir", "/dev/null"), "--data-dir: cannot "),
        (("token", "list", "--database-url", "x"), "--database-url: is not a database URL"),
        (("token", "revoke", "x", "--data-dir", str(tmp_path)), "TOKEN_ID: there is no token 'x'"),
    ):
        assert said(monkeypatch, capsys, *arguments).startswith(f"tampu: {start}")


def test_every_setting_that_can_be_wrong_has_a_flag_that_exists() -> None:
    """So that a new setting cannot be forgotten in `FLAGS`."""
    page = reference()
    for flag in FLAGS.values():
        assert f"`{flag}`" in page
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'ConfigError\(\s*"(\w+)"', sources))
    # Not on the command line: the database itself, the engine's block size, and the argument of `tampu worker`.
    assert named - FLAGS.keys() == {"block_size", "database", "SETUP"}


def test_a_request_that_does_not_fit_says_what_to_shorten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(write_gguf(tmp_path / "tiny.gguf", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS))
    line = said(monkeypatch, capsys, "run", "hi", "--model", model, "-n", "99999")
    numbers = re.search(r"\((\d+)\) exceeded .* has (\d+) tokens and --max-tokens is 99999: shorten one of them", line)
    assert numbers is not None, line
    assert int(numbers[1]) == int(numbers[2]) + 99999


def test_a_system_message_beside_a_raw_prompt_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(monkeypatch, capsys, "run", "hi", "--raw", "--system", "be brief")
    assert line == "tampu: --system: a raw prompt has no system message: leave out --system or --raw"


def test_a_step_holds_a_full_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_budget(None, 64) == 512
    assert step_budget(None, 600) == 600
    assert step_budget(64, 64) == 64
    line = said(monkeypatch, capsys, "serve", "--port", "0", "--max-num-batched-tokens", "32")
    assert line.startswith("tampu: --max-num-batched-tokens: 32 tokens a step do not hold 64 requests: ")
    assert "--max-num-seqs" in line


def test_a_window_beyond_the_model_is_noted(tmp_path: Path) -> None:
    model = str(write_gguf(tmp_path / "tiny.gguf", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS))
    command = ["run", "hi", "--model", model, "-n", "1"]
    window = TINY.max_position_embeddings
    beyond = CliRunner().invoke(app, [*command, "--max-model-len", "999999"])
    assert f"note: A request may hold {window} tokens, not 999,999: the model was made for no more." in beyond.stderr
    within = CliRunner().invoke(app, [*command, "--max-model-len", str(window - 1)])
    assert "note:" not in within.stderr
    settings = EngineSettings(model, "cpu", EngineConfig(max_model_len=999999), CpuRunnerConfig(num_threads=1))
    loaded = load_model(settings)
    loaded.close()
    assert any("not 999,999" in notice for notice in banner_facts(loaded, None, ServerConfig(), 1.0).notices)


def test_every_option_of_serve_has_a_variable_of_its_own() -> None:
    parameters = typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    options = [each for each in parameters if each.name != "help"]
    variables = [each.envvar for each in options]
    assert len(options) > 25
    for option in options:
        assert option.envvar == "TAMPU_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
    assert len(set(variables)) == len(variables)


def test_variables_do_what_their_options_do(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[ServerConfig, AccessPolicy]] = []

    def stop(script: Path | None, server: ServerConfig, policy: AccessPolicy, tokens: object) -> None:
        built.append((server, policy))
        raise ConfigError("stop", "here")

    monkeypatch.setattr("tampu.cli.serve.build_mock_server", stop)
    variables = {
        "TAMPU_MOCK": "1",
        "TAMPU_PORT": "0",
        "TAMPU_DEFAULT_MAX_TOKENS": "7",
        "TAMPU_PAD_STREAMS": "true",
        "TAMPU_NULL_RESPONSE": "true",
        "TAMPU_IGNORE_IMAGE": "true",
        "TAMPU_ENABLE_FUNCTIONS": "0",
        "TAMPU_REQUEST_TIMEOUT": "2.5",
        "TAMPU_ALLOWED_HOST": "a.example b.example",
        "TAMPU_ALLOWED_ORIGIN": "https://a.example",
        "TAMPU_PREFIX_CACHING": "false",
    }
    CliRunner().invoke(app, ["serve"], env=variables)
    CliRunner().invoke(app, ["serve", "--enable-functions", "--allowed-host", "c.example"], env=variables)
    CliRunner().invoke(app, ["serve", "--mock", "--port", "0"])
    (server, policy), (overruled, other), (default, _) = built
    assert (server.default_max_tokens, server.request_timeout_s) == (7, 2.5)
    assert server.is_stream_padded
    assert server.has_null_response_with_tool_calls
    assert server.is_image_ignored
    assert (server.enables_functions, overruled.enables_functions, default.enables_functions) == (False, True, None)
    assert policy.allowed_hosts == ("a.example", "b.example")
    assert policy.allowed_origins == ("https://a.example",)
    assert other.allowed_hosts == ("c.example",)


def test_the_page_says_what_is_required_and_writes_defaults_as_they_are_typed() -> None:
    page = reference()
    assert "| `--account` |  | required | Account id" in page
    assert "| `--scope` |  | `ai:read` |" in page
    assert "| `--name` |  |  |" in page


def test_the_list_of_models_cuts_no_name_and_calls_weights_as_the_banner_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    folder = tmp_path / ("a-very-long-name-" * 8)
    folder.mkdir()
    file = write_gguf(folder / "Tiny-3.1-8B.gguf", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS)
    listed = CliRunner().invoke(app, ["models", str(file)], env={"COLUMNS": "40"})
    (row,) = [line for line in listed.stdout.splitlines() if str(file) in line]
    assert row.removeprefix(str(file)).split()[0] == "Tiny-3.1-8B"


def test_a_folder_with_a_point_in_its_name_keeps_all_of_it(tmp_path: Path) -> None:
    folder = write_hf_folder(
        tmp_path / "Meta-Llama-3.1-8B-Instruct", TINY, random_weights(TINY), specials=LLAMA3_SPECIALS
    )
    loaded = load_model(EngineSettings(str(folder), "cpu", EngineConfig(), CpuRunnerConfig(num_threads=1)))
    loaded.close()
    assert loaded.card.weights_name == "Meta-Llama-3.1-8B-Instruct"
    assert not loaded.card.is_stand_in


def test_a_token_can_be_copied_from_a_narrow_terminal(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    _, record = TokenStore(database).create_token("a-long-account-name", ["ai:read"], "x" * 60)
    database.close()
    listed = CliRunner().invoke(app, ["token", "list", "--data-dir", str(tmp_path)], env={"COLUMNS": "40"})
    assert record.token_id in listed.stdout
    assert "x" * 60 in listed.stdout
