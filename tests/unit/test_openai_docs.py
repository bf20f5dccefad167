"""The documentation's parameter tables against the server's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tampu.api.openai_parameters import (
    CHAT_PARAMETERS,
    COMPLETION_PARAMETERS,
    EMBEDDING_PARAMETERS,
    RESPONSES_PARAMETERS,
)
from tampu.api.parameter_tables import Parameter, parameter_table

PAGE = Path(__file__).parents[2] / "docs" / "openai.md"


@pytest.mark.parametrize(
    ("title", "parameters"),
    [
        ("Chat completions", CHAT_PARAMETERS),
        ("Completions", COMPLETION_PARAMETERS),
        ("Responses", RESPONSES_PARAMETERS),
        ("Embeddings", EMBEDDING_PARAMETERS),
    ],
)
def test_the_page_has_the_servers_own_table(title: str, parameters: tuple[Parameter, ...]) -> None:
    names = [parameter.name for parameter in parameters]
    assert len(names) == len(set(names))
    assert f"## {title}\n\n{parameter_table(parameters)}\n" in PAGE.read_text()
