"""The tensors a Llama of a given configuration must have: names, shapes, and the check that nothing else is there."""

from __future__ import annotations

from collections.abc import Mapping

from tampu.core.errors import CheckpointError
from tampu.model.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors by their names inside the layer."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by Hugging Face name; `lm_head.weight` only when embeddings are not tied."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def check_tensors(file: str, config: ModelConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError for the first tensor that is missing, misshapen or not part of a Llama."""
    # Compared before the names are spelled out: a hostile layer count must not cost memory.
    if config.num_hidden_layers > len(found):
        raise CheckpointError(
            file, f"the configuration says {config.num_hidden_layers} layers, but the file holds {len(found)} tensors"
        )
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(file, "missing", tensor=name)
        if found[name] != shape:
            raise CheckpointError(file, f"has shape {found[name]}, the configuration says {shape}", tensor=name)
    for name in found:
        if name not in expected:
            raise CheckpointError(file, "is not part of a Llama of this configuration", tensor=name)
