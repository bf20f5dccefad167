"""Shared fixtures. That this file is here also puts `tests/` on the import path, for modules such as `checkpoints`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tampu.model.bundled import bundled_model_path

# `make test` says the same to everybody: the examples follow from the test's text, and no example is timed.
# `make fuzz` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The bundled GGUF file; for tests marked `bundled`."""
    path = bundled_model_path()
    assert path is not None, "the bundled weights are not installed: run `make test`"
    return path
