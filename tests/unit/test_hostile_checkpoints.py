"""Broken and hostile model files: always one CheckpointError or a whole model, never a crash or a large allocation."""

from __future__ import annotations

import dataclasses
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import LLAMA3_SPECIALS, TINY, hf_config, random_weights, write_gguf, write_hf_folder
from tampu.core.errors import CheckpointError
from tampu.model.checkpoint import open_checkpoint

# A file of some 4 KB, half of it header.
SMALL = dataclasses.replace(
    TINY,
    vocab_size=12,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)
MEMORY_LIMIT_BYTES = 2_000_000
EXTREMES = [0, 1, 2, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]


def open_and_read(path: Path) -> bool:
    """True when the whole model could be read, False when it was refused properly; within the memory bound."""
    tracemalloc.start()
    try:
        error = open_error(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT_BYTES
    if error is None:
        return True
    assert str(path) in error.file
    assert error.reason
    return False


def open_error(path: Path) -> CheckpointError | None:
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        return error
    for name in checkpoint.tensor_names():
        assert checkpoint.dequantize(name).shape == checkpoint.tensor(name).shape
    checkpoint.close()
    return None


def mutate(original: bytes, rng: random.Random, hot_bytes: int) -> bytes:
    """One to three damages, mostly in the first `hot_bytes`."""
    data = bytearray(original)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = rng.randrange(min(hot_bytes, len(data)) if rng.random() < 0.9 else len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place : place + 8] = rng.choice(EXTREMES).to_bytes(8, "little")
        elif kind == 3:
            data[place : place + 4] = (rng.choice(EXTREMES) & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 4:
            del data[place : place + rng.choice([1, 4, 8, 100])]
        else:
            data[place:place] = data[place : place + rng.choice([1, 8, 64])]
    return bytes(data)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    tokens = [*LLAMA3_SPECIALS, "a", "b", "ab"]
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(LLAMA3_SPECIALS) + [1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
    }
    write_gguf(path, SMALL, random_weights(SMALL), metadata=tokenizer)
    return path.read_bytes()


def field_places(data: bytes, *names: bytes) -> list[int]:
    """Where the values behind these keys and tensor names begin."""
    return [data.index(name) + len(name) for name in names]


class TestGguf:
    def test_truncated_anywhere(self, gguf_bytes: bytes, tmp_path: Path) -> None:
        path = tmp_path / "cut.gguf"
        end_of_data = len(gguf_bytes.rstrip(b"\0"))
        rng = random.Random(1)
        cuts = {*range(64), *(rng.randrange(end_of_data - 8) for _ in range(300)), end_of_data - 8}
        for cut in cuts:
            path.write_bytes(gguf_bytes[:cut])
            assert not open_and_read(path), f"accepted {cut} of {len(gguf_bytes)} bytes"

    def test_random_damage(self, gguf_bytes: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        rng = random.Random(2)
        outcomes = []
        for _ in range(500):
            path.write_bytes(mutate(gguf_bytes, rng, len(gguf_bytes) // 2))
            outcomes.append(open_and_read(path))
        # Damage to a token's spelling goes unnoticed, damage to structure does not: both must have happened.
        assert 50 < outcomes.count(False) < 500

    def test_extreme_numbers_in_every_field(self, gguf_bytes: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        places = field_places(
            gguf_bytes,
            b"llama.block_count",
            b"llama.embedding_length",
            b"llama.attention.head_count",
            b"llama.attention.key_length",
            b"llama.context_length",
            b"tokenizer.ggml.tokens",
            b"tokenizer.ggml.token_type",
            b"tokenizer.ggml.bos_token_id",
            b"token_embd.weight",
            b"blk.0.attn_q.weight",
            b"blk.0.ffn_norm.weight",
            b"output_norm.weight",
        )
        for place in (8, 16, *places):  # the counts of tensors and entries too
            for offset in range(0, 32, 4):
                for value in EXTREMES[::2]:
                    data = bytearray(gguf_bytes)
                    data[place + offset : place + offset + 8] = value.to_bytes(8, "little")
                    path.write_bytes(data)
                    open_and_read(path)

    def test_overlapping_tensors(self, gguf_bytes: bytes, tmp_path: Path) -> None:
        # Both norms have one dimension: name, u32 count, u64 size, u32 type, u64 offset.
        first, second = field_places(gguf_bytes, b"blk.0.attn_norm.weight", b"blk.0.ffn_norm.weight")
        data = bytearray(gguf_bytes)
        data[second + 16 : second + 24] = data[first + 16 : first + 24]
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(CheckpointError, match="shares bytes with"):
            open_checkpoint(tmp_path / "bad.gguf")

    def test_duplicate_names(self, gguf_bytes: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        path.write_bytes(gguf_bytes.replace(b"blk.0.ffn_gate.weight", b"blk.0.ffn_down.weight"))
        with pytest.raises(CheckpointError, match="appears twice"):
            open_checkpoint(path)
        path.write_bytes(gguf_bytes.replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.bos_token_id"))
        with pytest.raises(CheckpointError, match="bos_token_id' appears twice"):
            open_checkpoint(path)

    @pytest.mark.parametrize("num_bytes", [0, 3, 4, 24, 5000])
    def test_not_gguf_at_all(self, num_bytes: int, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        for content in (bytes(num_bytes), b"\xff" * num_bytes, b"GGUF" + b"\3\0\0\0" + b"\xff" * num_bytes):
            path.write_bytes(content)
            assert not open_and_read(path)

    def test_arrays_of_arrays(self, gguf_bytes: bytes, tmp_path: Path) -> None:
        (place,) = field_places(gguf_bytes, b"tokenizer.ggml.token_type")
        data = bytearray(gguf_bytes)
        data[place + 4 : place + 8] = (9).to_bytes(4, "little")
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(CheckpointError, match="elements of type 9"):
            open_checkpoint(tmp_path / "bad.gguf")


class TestFolder:
    def test_weights_truncated_and_damaged(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path / "hf", SMALL, random_weights(SMALL))
        weights = folder / "model.safetensors"
        original = weights.read_bytes()
        header_bytes = int.from_bytes(original[:8], "little")
        rng = random.Random(3)
        for cut in [*range(16), *(rng.randrange(len(original)) for _ in range(100)), len(original) - 1]:
            weights.write_bytes(original[:cut])
            assert not open_and_read(folder)
        for _ in range(300):
            weights.write_bytes(mutate(original, rng, header_bytes + 8))
            open_and_read(folder)

    def test_small_files_damaged(self, tmp_path: Path) -> None:
        folder = write_hf_folder(
            tmp_path / "hf",
            SMALL,
            random_weights(SMALL),
            num_shards=2,
            generation_config={"eos_token_id": [1, 2]},
        )
        tokens = [{"id": i, "content": token} for i, token in enumerate(LLAMA3_SPECIALS)]
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "post_processor": {}}))
        rng = random.Random(4)
        for name in ("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"):
            original = (folder / name).read_bytes()
            for _ in range(60):
                (folder / name).write_bytes(mutate(original, rng, len(original)))
                open_and_read(folder)
            (folder / name).write_bytes(original)
        assert open_and_read(folder)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(EXTREMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def quick(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_folder(tmp_path_factory.mktemp("hf"), SMALL, random_weights(SMALL))


class TestAnyJson:
    @quick(120)
    @given(field=st.sampled_from([*sorted(hf_config(SMALL)), "rope_scaling", "rope_parameters"]), value=JSON_VALUES)
    def test_any_value_in_any_field_of_the_configuration(self, folder: Path, field: str, value: Any) -> None:
        fields = {**hf_config(SMALL), field: value}
        (folder / "config.json").write_text(json.dumps(fields))
        open_and_read(folder)

    @quick(120)
    @given(field=st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__"]), value=JSON_VALUES)
    def test_any_value_in_any_field_of_the_header(self, folder: Path, field: str, value: Any) -> None:
        entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], field: value}
        text = json.dumps({"x": entry, "__metadata__": value}).encode()
        (folder / "config.json").write_text(json.dumps(hf_config(SMALL)))
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
        assert not open_and_read(folder)
