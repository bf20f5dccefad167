"""Shared fixtures. That this file is here also puts `tests/` on the import path, for modules such as `checkpoints`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tampu.model.bundled import bundled_model_path


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The bundled GGUF file; for tests marked `bundled`."""
    path = bundled_model_path()
    assert path is not None, "the bundled weights are not installed: run `make test`"
    return path
