"""The tiny Llamas whose logits are stored in `llama_logits.npz`, shared by the script that made them and the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from checkpoints import LLAMA31_SCALING, TINY
from tampu.model.config import ModelConfig

GOLDEN_FILE = Path(__file__).parent / "llama_logits.npz"
SEED = 20
NUM_TOKENS = 240
# Early ones, and many beyond original_max_position_embeddings (64) of the scaled models.
POSITIONS = (0, 1, 2, 7, 15, 16, 31, 63, 64, 65, 100, 127, 128, 160, 200, 238, 239)

GOLDEN_MODELS: dict[str, ModelConfig] = {
    "tied": TINY,
    "untied_mha": dataclasses.replace(TINY, num_key_value_heads=4, tie_word_embeddings=False, rope_theta=500000.0),
    "scaled": dataclasses.replace(TINY, rope_scaling=LLAMA31_SCALING, rope_theta=500000.0),
    # One kv head for all, and heads that do not add up to the hidden size.
    "scaled_untied_mqa": dataclasses.replace(
        TINY,
        num_key_value_heads=1,
        head_dim=24,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_scaling=LLAMA31_SCALING,
    ),
}


def golden_token_ids(config: ModelConfig) -> list[int]:
    """A fixed sequence that visits the whole vocabulary."""
    return [(7 * i * i + 13 * i + 5) % config.vocab_size for i in range(NUM_TOKENS)]


# For the bundled model: a question in its own chat form, then ids from all over its vocabulary.
BUNDLED_TOKEN_IDS = [
    *(1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198),
    *((i * 7919) % 49000 + 100 for i in range(48)),
]
NUM_TOP = 16
