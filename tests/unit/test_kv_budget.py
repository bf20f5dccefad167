"""How much KV memory the native runner takes when nobody says, for a model of the size this project is named for."""

from __future__ import annotations

import pytest

from tampu.core.config import EngineConfig
from tampu.runner.cpu import DEFAULT_KV_LIMIT_BYTES, default_num_blocks

GIB = 1 << 30
CONTEXT = 131_072
# Llama 3.1 8B in float16: 32 layers, keys and values, 8 heads of 128 values, 16 tokens a block.
BLOCK_BYTES = 32 * 2 * 8 * 128 * 2 * 16
WEIGHTS = {"Q4_0": 4.7e9, "Q8_0": 8.5e9, "BF16": 16.1e9}


def tokens(free_bytes: float, max_model_len: int | None = None) -> int:
    engine = EngineConfig(max_model_len=max_model_len)
    return default_num_blocks(engine, CONTEXT, BLOCK_BYTES, int(free_bytes)) * engine.block_size


@pytest.mark.parametrize("weights", WEIGHTS)
def test_llama_8b_on_24_gib_has_a_useful_context_and_leaves_most_memory_free(weights: str) -> None:
    free_bytes = 24 * GIB - WEIGHTS[weights]
    room = tokens(free_bytes)
    assert 8192 <= room <= CONTEXT
    taken = room // 16 * BLOCK_BYTES
    assert taken <= DEFAULT_KV_LIMIT_BYTES
    assert taken <= free_bytes / 4


def test_a_large_machine_is_not_filled() -> None:
    assert tokens(1000 * GIB) // 16 * BLOCK_BYTES == DEFAULT_KV_LIMIT_BYTES


def test_a_length_asked_for_by_name_is_given_when_one_request_of_it_fits() -> None:
    free_bytes = 24 * GIB - WEIGHTS["Q4_0"]
    assert tokens(free_bytes, max_model_len=CONTEXT) == CONTEXT
    assert tokens(free_bytes, max_model_len=10 * CONTEXT) == CONTEXT
    assert tokens(free_bytes, max_model_len=1000) == 4 * 1008
    # It does not fit: the share stands, and the banner says what became of it.
    assert tokens(8 * GIB, max_model_len=CONTEXT) == tokens(8 * GIB) == 16_384


def test_a_small_model_gets_room_for_a_few_requests_of_full_length() -> None:
    assert default_num_blocks(EngineConfig(), 512, 4096, 8 * GIB) == 4 * 512 // 16


def test_there_is_always_a_block() -> None:
    assert default_num_blocks(EngineConfig(), CONTEXT, BLOCK_BYTES, BLOCK_BYTES) == 1
