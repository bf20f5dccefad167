"""`tampu token` from the outside: what it prints where, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tampu.cli.token import app, parse_life_time
from tampu.core.errors import ConfigError
from tampu.store.database import open_database
from tampu.store.tokens import TokenStore


def test_a_token_is_made_listed_revoked_and_forgotten(tmp_path: Path) -> None:
    runner = CliRunner()
    place = ["--data-dir", str(tmp_path)]
    made = runner.invoke(app, ["create", "--account", "acme", "--scope", "ai:write", "--expires", "30d", *place])
    assert made.exit_code == 0, made.output
    plaintext = made.stdout.strip()
    assert plaintext.startswith("tampu_")
    assert "cannot be shown again" in made.stderr

    database = open_database(tmp_path)
    record = TokenStore(database).find_token(plaintext)
    database.close()
    assert record is not None
    assert record.account == "acme"
    assert record.expires_at == record.created_at + 30 * 86400

    listed = runner.invoke(app, ["list", *place], terminal_width=200)
    assert record.token_id in listed.stdout
    assert plaintext not in listed.output
    assert runner.invoke(app, ["revoke", record.token_id, *place]).exit_code == 0
    assert "revoked" in runner.invoke(app, ["list", *place]).stdout
    assert runner.invoke(app, ["forget", record.token_id, *place]).exit_code == 0
    assert record.token_id not in runner.invoke(app, ["list", *place]).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--account", "a b"], "account"),
        (["create", "--account", "acme", "--scope", "all"], "scope"),
        (["create", "--account", "acme", "--expires", "soon"], "expires"),
        (["revoke", "nothing"], "no token"),
        (["forget", "nothing"], "no token"),
    ],
)
def test_mistakes_name_the_setting_and_print_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)  # the `tampu` command makes one sentence of it
    assert said in str(result.exception)
    assert result.stdout == ""


def test_life_times() -> None:
    assert parse_life_time("30m") == 1800
    assert parse_life_time("4w") == 28 * 86400
    assert parse_life_time("3650d") == 3650 * 86400
    for wrong in ("", "0d", "5", "-1d", "1y", "9999999999d", "٣d"):
        with pytest.raises(ConfigError, match="is not a life time"):
            parse_life_time(wrong)
    for long in ("3651d", "999999w", "999999999m"):
        with pytest.raises(ConfigError, match=f"expires: '{long}' is longer than ten years"):
            parse_life_time(long)


def test_a_token_that_outlives_the_calendar_is_listed(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    TokenStore(database).create_token("acme", ["ai:read"], expires_at=604_800 * 999_999 + 1_800_000_000)
    TokenStore(database).create_token("acme", ["ai:read"], expires_at=1 << 62)
    database.close()
    listed = CliRunner().invoke(app, ["list", "--data-dir", str(tmp_path)], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert listed.stdout.count("until a year beyond 9999") == 2
