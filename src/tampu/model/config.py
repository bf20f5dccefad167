"""What a Llama is, as numbers. Names are Hugging Face's."""

from __future__ import annotations

from dataclasses import dataclass

from tampu.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """RoPE frequency scaling of Llama 3.1 (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and constants of one Llama-architecture model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope_scaling: Llama3RopeScaling | None = None
    # GGUF files carry Llama 3.1 scaling as a divisor per frequency, (head_dim / 2,); it replaces rope_scaling.
    rope_freq_factors: tuple[float, ...] | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


def check_config(file: str, config: ModelConfig) -> None:
    """Raise CheckpointError when a value is absurd. Bounds are far above every published Llama."""
    sizes = (
        ("vocab_size", config.vocab_size, 1 << 24),
        ("hidden_size", config.hidden_size, 1 << 20),
        ("intermediate_size", config.intermediate_size, 1 << 22),
        ("num_hidden_layers", config.num_hidden_layers, 1 << 12),
        ("num_attention_heads", config.num_attention_heads, 1 << 14),
        ("num_key_value_heads", config.num_key_value_heads, 1 << 14),
        ("head_dim", config.head_dim, 1 << 12),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 27),
    )
    for name, value, limit in sizes:
        if not 1 <= value <= limit:
            raise CheckpointError(file, f"{name} is {value}, must be between 1 and {limit}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            file,
            f"num_attention_heads ({config.num_attention_heads}) is not a multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})",
        )
    if config.head_dim % 2:
        raise CheckpointError(file, f"head_dim is {config.head_dim}, must be even")
    _check_number(file, "rms_norm_eps", config.rms_norm_eps, 0.0, 1.0)
    _check_number(file, "rope_theta", config.rope_theta, 1.0, 1e12)
    _check_rope(file, config)
    for name, token_id in (("bos_token_id", config.bos_token_id), *(("eos_token_id", i) for i in config.eos_token_ids)):
        if token_id is not None and not 0 <= token_id < config.vocab_size:
            raise CheckpointError(file, f"{name} is {token_id}, but the vocabulary has {config.vocab_size} entries")


def _check_number(file: str, name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails.
    if not low <= value <= high:
        raise CheckpointError(file, f"{name} is {value}, must be between {low:g} and {high:g}")


def _check_rope(file: str, config: ModelConfig) -> None:
    scaling, factors = config.rope_scaling, config.rope_freq_factors
    if scaling is not None:
        _check_number(file, "rope_scaling.factor", scaling.factor, 1e-3, 1e6)
        _check_number(file, "rope_scaling.low_freq_factor", scaling.low_freq_factor, 1e-3, 1e6)
        _check_number(file, "rope_scaling.high_freq_factor", scaling.high_freq_factor, 1e-3, 1e6)
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise CheckpointError(file, "rope_scaling.high_freq_factor must be greater than low_freq_factor")
        _check_number(
            file,
            "rope_scaling.original_max_position_embeddings",
            scaling.original_max_position_embeddings,
            1,
            1 << 27,
        )
    if factors is not None:
        if len(factors) != config.head_dim // 2:
            raise CheckpointError(
                file, f"has {len(factors)} values, head_dim / 2 is {config.head_dim // 2}", tensor="rope_freqs.weight"
            )
        if not all(1e-6 <= factor <= 1e6 for factor in factors):
            raise CheckpointError(file, "holds values outside 1e-6 .. 1e6", tensor="rope_freqs.weight")
