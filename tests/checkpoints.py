"""Makes small random Llamas for tests: GGUF files in any storage format, and Hugging Face folders.

Weights come from raw PCG64 words, a stream NumPy promises never to change, so a golden file needs no weights beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tampu.model.config import Llama3RopeScaling, ModelConfig
from tampu.model.llama_tensors import EMBEDDING, FINAL_NORM, LM_HEAD, expected_shapes

Weights = dict[str, npt.NDArray[np.float32]]

TINY = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
)
# Every row is a multiple of 256 values long, as the K formats need.
TINY_256 = dataclasses.replace(
    TINY, hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=32
)
LLAMA31_SCALING = Llama3RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_GGUF_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def uniform(seed: int, count: int) -> npt.NDArray[np.float32]:
    """Values in [-1, 1), 24 bits each, the same for ever."""
    words = np.random.PCG64(seed).random_raw(count) >> np.uint64(40)
    return (words.astype(np.float64) * 2.0**-23 - 1.0).astype(np.float32)


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Weights that keep activations near one and logits spread over some units."""
    weights = {}
    for index, (name, shape) in enumerate(expected_shapes(config).items()):
        values = uniform(seed * 100_003 + index, math.prod(shape)).reshape(shape)
        if len(shape) == 1:
            weights[name] = 1 + values / 4
        elif name in (EMBEDDING, LM_HEAD):
            weights[name] = values
        else:
            weights[name] = values * np.float32(math.sqrt(3 / shape[1]))
    return weights


def gguf_name(name: str) -> str:
    """A Hugging Face tensor name as GGUF spells it."""
    fixed = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", LM_HEAD: "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_GGUF_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleave_rows(values: npt.NDArray[Any], num_heads: int) -> npt.NDArray[Any]:
    """Rows of q or k in the order llama.cpp's converter writes them."""
    head_dim = values.shape[0] // num_heads
    return np.ascontiguousarray(values.reshape(num_heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape))


def encode(values: npt.NDArray[np.float32], qtype: str, seed: int = 0) -> npt.NDArray[Any]:
    """A matrix in a storage format; the K formats, which gguf cannot write, get random blocks of the same spread."""
    if qtype in ("Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K"):
        return random_blocks(qtype, values.shape, float(values.std()), seed)
    return gguf.quantize(values, gguf.GGMLQuantizationType[qtype])


def random_blocks(qtype: str, shape: tuple[int, ...], std: float, seed: int) -> npt.NDArray[np.uint8]:
    """Valid random blocks of a K format whose values have about this standard deviation; (rows, bytes per row)."""
    # Where the float16 scales lie in a block, and how large they are for values of deviation one.
    block_bytes, scales = {
        "Q2_K": (84, {80: 1 / 15.0, 82: 1.5 / 15.0}),
        "Q3_K": (110, {108: 1 / 42.0}),
        "Q4_K": (144, {0: 1 / 290.0, 2: 7.5 / 290.0}),
        "Q5_K": (176, {0: 1 / 600.0, 2: 15.5 / 600.0}),
        "Q6_K": (210, {208: 1 / 1370.0}),
    }[qtype]
    num_blocks = math.prod(shape) // 256
    words = np.random.PCG64(seed).random_raw(num_blocks * block_bytes // 8 + 1)
    blocks = words.view(np.uint8)[: num_blocks * block_bytes].reshape(num_blocks, block_bytes).copy()
    for offset, scale in scales.items():
        spread = 1 + uniform(seed + offset + 1, num_blocks) / 2
        blocks[:, offset : offset + 2] = (spread * scale * std).astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


def byte_level_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary(specials: Sequence[str], size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens (specials, bytes, a few merges, fillers), their GGUF types, and the merges."""
    tokens, types = list(specials), [3] * len(specials)
    tokens += byte_level_alphabet()
    types += [1] * 256
    merges = ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he"]
    tokens += [merge.replace(" ", "") for merge in merges]
    types += [1] * len(merges)
    fillers = size - len(tokens)
    assert fillers >= 0, "the vocabulary is too small"
    return tokens + [f"[filler {i}]" for i in range(fillers)], types + [5] * fillers, merges


def gguf_metadata(config: ModelConfig, specials: Sequence[str] | None) -> dict[str, Any]:
    """The metadata of a converted model; None = no tokenizer."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if config.bos_token_id is not None:
        metadata["tokenizer.ggml.bos_token_id"] = config.bos_token_id
    if config.eos_token_ids:
        metadata["tokenizer.ggml.eos_token_id"] = config.eos_token_ids[0]
    if specials is not None:
        tokens, types, merges = vocabulary(specials, config.vocab_size)
        metadata["tokenizer.ggml.model"] = "gpt2"
        metadata["tokenizer.ggml.pre"] = "llama-bpe"
        metadata["tokenizer.ggml.tokens"] = tokens
        metadata["tokenizer.ggml.token_type"] = types
        metadata["tokenizer.ggml.merges"] = merges
    return metadata


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: Weights,
    *,
    qtype: str = "F32",
    qtypes: Mapping[str, str] | None = None,
    specials: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint. Norms stay F32; `qtypes` overrides the format of single tensors (Hugging Face names).

    `metadata` overrides entries; None removes one. Python ints become UINT32, floats FLOAT32.
    """
    writer = gguf.GGUFWriter(path, "llama")
    entries = {**gguf_metadata(config, specials), **(metadata or {})}
    del writer.kv_data[0]["general.architecture"]
    for key, value in entries.items():
        _add_metadata(writer, key, value)
    if config.rope_scaling is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for index, (name, values) in enumerate(weights.items()):
        stored = (qtypes or {}).get(name, "F32" if values.ndim == 1 else qtype)
        data = encode(values, stored, index)
        if name.endswith("q_proj.weight"):
            data = interleave_rows(data, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            data = interleave_rows(data, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def rope_factors(config: ModelConfig) -> npt.NDArray[np.float32]:
    """Llama 3.1 scaling as llama.cpp's converter stores it: one divisor per frequency, computed one by one."""
    scaling = config.rope_scaling
    assert scaling is not None
    factors = []
    for pair in range(config.head_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.head_dim)
        if wavelength < scaling.original_max_position_embeddings / scaling.high_freq_factor:
            factors.append(1.0)
        elif wavelength > scaling.original_max_position_embeddings / scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, dtype=np.float32)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a model."""
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
    return fields


def safetensors_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file from (dtype, shape, data) by name. Written out here because NumPy has no bfloat16."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_hf_folder(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    *,
    qtype: str = "F32",
    num_shards: int = 1,
    specials: Sequence[str] | None = None,
    config_changes: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder; `config_changes` overrides fields of config.json, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {**hf_config(config), **(config_changes or {})}
    _write_json(folder / "config.json", {key: value for key, value in fields.items() if value is not None})
    if generation_config is not None:
        _write_json(folder / "generation_config.json", generation_config)
    if specials is not None:
        write_tokenizer_json(folder / "tokenizer.json", specials, config.vocab_size)
    tensors = {name: (qtype, values.shape, encode(values, qtype).tobytes()) for name, values in weights.items()}
    if num_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        weight_map.update(dict.fromkeys(part, file))
        (folder / file).write_bytes(safetensors_bytes(part))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer_json(path: Path, specials: Sequence[str], vocab_size: int) -> Path:
    """A byte-level BPE tokenizer over the same vocabulary as `vocabulary` gives."""
    tokens, types, merges = vocabulary(specials, vocab_size)
    pairs = [(merge.split(" ")[0], merge.split(" ")[1]) for merge in merges]
    known = {token: index for index, token in enumerate(tokens) if types[index] == 1}
    tokenizer = Tokenizer(models.BPE(vocab={**{token: i for i, token in enumerate(specials)}, **known}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.save(str(path))
    return path
