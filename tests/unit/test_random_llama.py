"""The benchmark's random checkpoints open like real ones."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tampu.model.checkpoint import open_checkpoint
from tampu.model.llama_tensors import EMBEDDING

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_random_llama.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_random_llama", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_small_file_of_every_kind_of_tensor(script: ModuleType, tmp_path: Path) -> None:
    config = dataclasses.replace(
        script.SHAPES["llama-3.2-1b"],
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    path = tmp_path / "random.gguf"
    script.write_random_llama(path, config, "Q4_K_M", 0, name="Random")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.quantization, checkpoint.chat_template, checkpoint.notices) == ("Q4_K_M", "llama3", ())
    assert checkpoint.config.eos_token_ids == (128009, 128001, 128008)
    assert len(checkpoint.tokenizer_spec.tokens) == len(set(checkpoint.tokenizer_spec.tokens)) == 128256
    assert {checkpoint.tensor(name).qtype for name in checkpoint.tensor_names()} == {"F32", "Q4_K", "Q6_K"}
    for name in checkpoint.tensor_names():
        if name != EMBEDDING and len(checkpoint.source.shapes()[name]) == 2:
            values = checkpoint.dequantize(name)
            assert np.isfinite(values).all()
            assert 0.8 < float(values.std()) * values.shape[1] ** 0.5 < 1.25


def test_shapes_are_the_published_sizes(script: ModuleType) -> None:
    sizes = {
        name: sum(int(np.prod(shape)) for shape in script.expected_shapes(config).values())
        for name, config in script.SHAPES.items()
    }
    assert sizes == {
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.2-3b": 3_212_749_824,
        "llama-3.2-1b": 1_235_814_400,
    }
