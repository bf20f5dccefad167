"""Writes a GGUF file of a Llama's shape with random weights, for speed and memory runs without the real one.

    python -m benchmarks.make_random_llama /tmp/random-8b.gguf --shape llama-3.1-8b --type Q4_K_M

Matrices are written one by one, so memory stays below a gigabyte. The tokenizer is a working byte-level BPE over an
invented vocabulary with Llama 3's special tokens: any text can be encoded, at about four letters a token, and what the
model answers is noise. Speed does not depend on the values; quality cannot be judged with this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import string
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tampu.model.config import Llama3RopeScaling, ModelConfig
from tampu.model.gguf_checkpoint import GLOBAL_NAMES, LAYER_NAMES
from tampu.model.llama_tensors import EMBEDDING, LM_HEAD, expected_shapes
from tampu.model.quantization import BLOCK_SIZES
from tampu.model.rope import inv_freq

_SCALING_8B = Llama3RopeScaling(8.0, 1.0, 4.0, 8192)
_SCALING_SMALL = Llama3RopeScaling(32.0, 1.0, 4.0, 8192)
_8B = ModelConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    rope_scaling=_SCALING_8B,
)
SHAPES = {
    "llama-3.1-8b": _8B,
    "llama-3.2-3b": dataclasses.replace(
        _8B,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        tie_word_embeddings=True,
        rope_scaling=_SCALING_SMALL,
    ),
    "llama-3.2-1b": dataclasses.replace(
        _8B,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        head_dim=64,
        tie_word_embeddings=True,
        rope_scaling=_SCALING_SMALL,
    ),
}
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
_NUM_NORMAL_TOKENS = 128000
_NAMED_SPECIALS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
# Where the float16 scales lie in a block, and their value for weights of deviation one when all other bytes are random.
_SCALES = {
    "Q8_0": {0: 1 / 74.0},
    "Q4_0": {0: 1 / 4.6},
    "Q4_1": {0: 1 / 4.6, 2: -7.5 / 4.6},
    "Q4_K": {0: 1 / 290.0, 2: 7.5 / 290.0},
    "Q5_K": {0: 1 / 600.0, 2: 15.5 / 600.0},
    "Q6_K": {208: 1 / 1370.0},
}
_CHUNK_BLOCKS = 1 << 17


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--type", choices=FILE_TYPES, default="Q4_K_M", dest="file_type")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    if arguments.layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=arguments.layers)
    begin = time.perf_counter()
    write_random_llama(arguments.path, config, arguments.file_type, arguments.seed, name=f"Random {arguments.shape}")
    seconds = time.perf_counter() - begin
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s")


def write_random_llama(path: Path, config: ModelConfig, file_type: str, seed: int, *, name: str) -> None:
    """Write the whole file. `file_type` is a key of FILE_TYPES."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata(config, file_type, name).items():
        _add_metadata(writer, key, value)
    plans = [(tensor, shape, qtype_of(tensor, config, file_type)) for tensor, shape in expected_shapes(config).items()]
    # Before everything else in the file, as llama.cpp's converter has it.
    writer.add_tensor_info("rope_freqs.weight", (config.head_dim // 2,), np.dtype(np.float32), config.head_dim * 2)
    for tensor, shape, qtype in plans:
        row_bytes = shape[-1] // BLOCK_SIZES[qtype][0] * BLOCK_SIZES[qtype][1]
        num_bytes = math.prod(shape[:-1]) * row_bytes
        stored = (*shape[:-1], row_bytes)
        writer.add_tensor_info(gguf_name(tensor), stored, np.dtype(np.uint8), num_bytes, _ggml_type(qtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    plain = inv_freq(dataclasses.replace(config, rope_scaling=None))
    writer.write_tensor_data(plain / inv_freq(config))
    rng = np.random.default_rng(seed)
    for _, shape, qtype in plans:
        writer.write_tensor_data(random_tensor(shape, qtype, rng))
    writer.close()


def qtype_of(name: str, config: ModelConfig, file_type: str) -> str:
    """Storage format of one tensor, following llama.cpp's mixtures: the sensitive ones get more bits."""
    if name.endswith("norm.weight"):
        return "F32"
    if file_type in ("F16", "Q8_0", "Q6_K"):
        return file_type
    if name == LM_HEAD or (name == EMBEDDING and config.tie_word_embeddings):
        return "Q6_K"
    if file_type.endswith("_M") and name.endswith(("v_proj.weight", "down_proj.weight")):
        layer, count = int(name.split(".")[2]), config.num_hidden_layers
        if layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2:
            return "Q6_K"
    return file_type.removesuffix("_M")


def random_tensor(shape: tuple[int, ...], qtype: str, rng: np.random.Generator) -> npt.NDArray[Any]:
    """A norm near one, or valid random blocks whose values spread as 1 / sqrt(row length)."""
    if len(shape) == 1:
        return (1 + rng.standard_normal(shape, dtype=np.float32) / 10).astype(np.float32)
    deviation = 1 / math.sqrt(shape[1])
    if qtype == "F16":
        values = np.empty(shape, dtype=np.float16)
        for begin in range(0, shape[0], 1024):
            values[begin : begin + 1024] = rng.standard_normal(values[begin : begin + 1024].shape) * deviation
        return values.view(np.uint8)
    values_per_block, block_bytes = BLOCK_SIZES[qtype]
    num_blocks = math.prod(shape) // values_per_block
    blocks = np.empty((num_blocks, block_bytes), dtype=np.uint8)
    for begin in range(0, num_blocks, _CHUNK_BLOCKS):
        chunk = blocks[begin : begin + _CHUNK_BLOCKS]
        chunk[:] = np.frombuffer(rng.bytes(chunk.size), dtype=np.uint8).reshape(chunk.shape)
        for offset, scale in _SCALES[qtype].items():
            spread = rng.uniform(0.5, 1.5, len(chunk)) * scale * deviation
            chunk[:, offset : offset + 2] = spread.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor."""
    for theirs, ours in GLOBAL_NAMES.items():
        if name == ours:
            return theirs
    _, _, layer, rest = name.split(".", 3)
    theirs = next(key for key, value in LAYER_NAMES.items() if f"{value}.weight" == rest)
    return f"blk.{layer}.{theirs}.weight"


def metadata(config: ModelConfig, file_type: str, name: str) -> dict[str, Any]:
    """What llama.cpp and Tampu read: the shape, and the tokenizer."""
    tokens, merges = vocabulary(config.vocab_size)
    return {
        "general.name": name,
        "general.file_type": FILE_TYPES[file_type],
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * _NUM_NORMAL_TOKENS + [3] * (config.vocab_size - _NUM_NORMAL_TOKENS),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": _NUM_NORMAL_TOKENS,
        "tokenizer.ggml.eos_token_id": _NUM_NORMAL_TOKENS + 9,
    }


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges: the bytes, then words of lowercase letters growing by one letter, then the special tokens."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    tokens = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    space = tokens[32]
    merges = []
    words: list[str] = [*string.ascii_lowercase, space]
    while len(tokens) < _NUM_NORMAL_TOKENS:
        longer = [(word, letter) for word in words for letter in string.ascii_lowercase]
        longer = longer[: _NUM_NORMAL_TOKENS - len(tokens)]
        merges += [f"{word} {letter}" for word, letter in longer]
        words = [word + letter for word, letter in longer]
        tokens += words
    reserved = itertools.count()
    for index in range(size - _NUM_NORMAL_TOKENS):
        tokens.append(_NAMED_SPECIALS.get(index) or f"<|reserved_special_token_{next(reserved)}|>")
    return tokens, merges


def _ggml_type(qtype: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[qtype]


def _add_metadata(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


if __name__ == "__main__":
    main()
