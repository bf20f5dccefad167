"""Hugging Face folders: configuration, end tokens, shards, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from checkpoints import (
    CHATML_SPECIALS,
    LLAMA3_SPECIALS,
    LLAMA31_SCALING,
    TINY,
    encode,
    hf_config,
    random_weights,
    safetensors_bytes,
    write_hf_folder,
)
from tampu.core.errors import CheckpointError
from tampu.model.checkpoint import open_checkpoint
from tampu.model.llama_tensors import EMBEDDING, LM_HEAD, expected_shapes

WEIGHTS = random_weights(TINY)
UNTIED = dataclasses.replace(TINY, tie_word_embeddings=False)
INDEX = "model.safetensors.index.json"


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


class TestFacts:
    def test_configuration_and_counts(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_hf_folder(tmp_path / "my-llama", TINY, WEIGHTS, qtype="BF16"))
        assert checkpoint.config == TINY
        assert checkpoint.name == "my-llama"
        assert checkpoint.quantization == "BF16"
        assert checkpoint.num_parameters == sum(values.size for values in WEIGHTS.values())
        assert checkpoint.file_bytes == (tmp_path / "my-llama" / "model.safetensors").stat().st_size
        assert set(checkpoint.tensor_names()) == set(expected_shapes(TINY))
        assert checkpoint.chat_template == "none"
        assert checkpoint.tokenizer_spec.tokenizer_json is None

    @pytest.mark.parametrize("qtype", ["F32", "F16", "BF16"])
    @pytest.mark.parametrize("num_shards", [1, 3])
    @pytest.mark.parametrize("config", [TINY, UNTIED])
    def test_values(self, qtype: str, num_shards: int, config: Any, tmp_path: Path) -> None:
        weights = random_weights(config)
        checkpoint = open_checkpoint(write_hf_folder(tmp_path, config, weights, qtype=qtype, num_shards=num_shards))
        for name, values in weights.items():
            tensor = checkpoint.tensor(name)
            assert (tensor.qtype, tensor.shape) == (qtype, values.shape)
            assert tensor.data.tobytes() == encode(values, qtype).tobytes()
            tolerance = {"F32": 0.0, "F16": 1e-3}.get(qtype, 8e-3)
            np.testing.assert_allclose(checkpoint.dequantize(name), values, rtol=tolerance, atol=tolerance * 1e-3)

    def test_file_written_by_the_safetensors_library(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS)
        safetensors.numpy.save_file(WEIGHTS, folder / "model.safetensors", metadata={"format": "pt"})
        checkpoint = open_checkpoint(folder)
        assert all(np.array_equal(checkpoint.dequantize(name), values) for name, values in WEIGHTS.items())

    def test_our_writer_is_read_by_the_safetensors_library(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS)
        loaded = safetensors.numpy.load_file(folder / "model.safetensors")
        assert all(np.array_equal(loaded[name], values) for name, values in WEIGHTS.items())

    def test_optional_fields_get_the_defaults_of_hugging_face(self, tmp_path: Path) -> None:
        config = dataclasses.replace(TINY, num_key_value_heads=4)
        optional = (
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
            "architectures",
            "model_type",
            "hidden_act",
            "bos_token_id",
            "eos_token_id",
        )
        changes = dict.fromkeys(optional)
        read = open_checkpoint(write_hf_folder(tmp_path, config, random_weights(config), config_changes=changes)).config
        assert (read.num_key_value_heads, read.head_dim, read.rms_norm_eps) == (4, 16, 1e-6)
        assert (read.rope_theta, read.max_position_embeddings) == (10000.0, 2048)
        assert (read.bos_token_id, read.eos_token_ids) == (None, ())

    def test_end_tokens_are_the_list_of_the_generation_config(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS, generation_config={"eos_token_id": [11, 12, 13]})
        assert open_checkpoint(folder).config.eos_token_ids == (11, 12, 13)
        (folder / "generation_config.json").write_text('{"eos_token_id": 14}')
        assert open_checkpoint(folder).config.eos_token_ids == (14,)
        (folder / "generation_config.json").write_text("{}")
        assert open_checkpoint(folder).config.eos_token_ids == (2,)

    def test_end_tokens_from_the_vocabulary_when_nothing_else_says(self, tmp_path: Path) -> None:
        changes = {"eos_token_id": None}
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS, specials=LLAMA3_SPECIALS, config_changes=changes)
        assert open_checkpoint(folder).config.eos_token_ids == (1, 4, 5)

    @pytest.mark.parametrize(("specials", "kind"), [(LLAMA3_SPECIALS, "llama3"), (CHATML_SPECIALS, "chatml")])
    def test_tokenizer(self, specials: tuple[str, ...], kind: str, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_hf_folder(tmp_path, TINY, WEIGHTS, specials=specials))
        assert checkpoint.chat_template == kind
        assert checkpoint.tokenizer_spec.tokenizer_json == str(tmp_path / "tokenizer.json")
        assert checkpoint.tokenizer_spec.vocab_size == TINY.vocab_size
        assert checkpoint.tokenizer_spec.add_bos_token is False

    def test_bos_comes_from_the_post_processor_or_the_tokenizer_config(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, dataclasses.replace(TINY, bos_token_id=0), WEIGHTS, specials=LLAMA3_SPECIALS)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        template = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
        }
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        assert open_checkpoint(folder).tokenizer_spec.add_bos_token is True
        (folder / "tokenizer_config.json").write_text(
            '{"add_bos_token": false, "chat_template": "<|start_header_id|>"}'
        )
        assert open_checkpoint(folder).tokenizer_spec.add_bos_token is False

    @pytest.mark.parametrize("spelling", ["rope_scaling", "rope_scaling_old", "rope_parameters"])
    def test_llama31_scaling_in_every_spelling(self, spelling: str, tmp_path: Path) -> None:
        scaling = {**dataclasses.asdict(LLAMA31_SCALING), "rope_type": "llama3"}
        changes: dict[str, Any] = {"rope_scaling": scaling, "rope_theta": 500000.0}
        if spelling == "rope_scaling_old":
            changes["rope_scaling"] = {**dataclasses.asdict(LLAMA31_SCALING), "type": "llama3"}
        elif spelling == "rope_parameters":
            changes = {"rope_parameters": {**scaling, "rope_theta": 500000.0}, "rope_theta": None}
        config = open_checkpoint(write_hf_folder(tmp_path, TINY, WEIGHTS, config_changes=changes)).config
        assert config == dataclasses.replace(TINY, rope_theta=500000.0, rope_scaling=LLAMA31_SCALING)

    def test_plain_rope_parameters(self, tmp_path: Path) -> None:
        changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}, "rope_theta": None}
        config = open_checkpoint(write_hf_folder(tmp_path, TINY, WEIGHTS, config_changes=changes)).config
        assert (config.rope_theta, config.rope_scaling) == (2e4, None)

    def test_repository_name_of_a_snapshot(self, tmp_path: Path) -> None:
        folder = tmp_path / "models--org--Llama-Tiny" / "snapshots" / "0123abcd"
        assert open_checkpoint(write_hf_folder(folder, TINY, WEIGHTS)).name == "Llama-Tiny"

    def test_links_as_in_the_cache_of_the_hub(self, tmp_path: Path) -> None:
        blobs, folder = write_hf_folder(tmp_path / "blobs", TINY, WEIGHTS, num_shards=2), tmp_path / "snapshot"
        folder.mkdir()
        for path in blobs.iterdir():
            (folder / path.name).symlink_to(path)
        assert open_checkpoint(folder).config == TINY

    def test_rotary_buffers_of_old_exports_are_passed_over(self, tmp_path: Path) -> None:
        weights = {**WEIGHTS, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
        assert len(open_checkpoint(write_hf_folder(tmp_path, TINY, weights)).tensor_names()) == len(WEIGHTS)

    def test_tied_matrix_stored_twice(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, {**WEIGHTS, LM_HEAD: WEIGHTS[EMBEDDING]})
        assert LM_HEAD not in open_checkpoint(folder).tensor_names()
        write_hf_folder(folder, TINY, {**WEIGHTS, LM_HEAD: WEIGHTS[EMBEDDING] + 1})
        assert "tie_word_embeddings is true" in message(folder)

    def test_close(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_hf_folder(tmp_path, TINY, WEIGHTS))
        tensor = checkpoint.tensor(EMBEDDING)
        checkpoint.close()
        assert tensor.data.tobytes() == WEIGHTS[EMBEDDING].tobytes()
        with pytest.raises(CheckpointError, match="closed"):
            checkpoint.tensor(EMBEDDING)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
            ({"architectures": None, "model_type": "qwen2"}, "qwen2"),
            ({"attention_bias": True}, "attention_bias"),
            ({"mlp_bias": True}, "mlp_bias"),
            ({"hidden_act": "gelu"}, "'gelu'"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
            ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear'"),
            ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_parameters.rope_type is 'dynamic'"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
            ({"rope_scaling": "llama3"}, "rope_scaling must be an object"),
            ({"hidden_size": None}, "hidden_size is missing"),
            ({"hidden_size": "64"}, "hidden_size must be a whole number"),
            ({"hidden_size": True}, "hidden_size must be a whole number"),
            ({"hidden_size": 10**30}, "hidden_size is 1000"),
            ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
            ({"num_hidden_layers": 4000}, "4000 layers"),
            ({"num_hidden_layers": 3}, "missing"),
            ({"num_attention_heads": 0}, "num_attention_heads is 0"),
            ({"num_key_value_heads": 3}, "not a multiple"),
            ({"head_dim": 15}, "head_dim is 15"),
            ({"head_dim": 32}, "configuration says"),
            ({"vocab_size": 319}, "configuration says (319, 64)"),
            ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
            ({"rms_norm_eps": 10**400}, "sane size"),
            ({"rope_theta": 0}, "rope_theta is 0"),
            ({"rope_theta": float("inf")}, "rope_theta is inf"),
            ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
            ({"tie_word_embeddings": False}, "'lm_head.weight': missing"),
            ({"bos_token_id": 320}, "bos_token_id is 320"),
            ({"bos_token_id": [1]}, "bos_token_id must be"),
            ({"eos_token_id": [1, -1]}, "eos_token_id is -1"),
            ({"eos_token_id": ["x"]}, "eos_token_id must be"),
        ],
    )
    def test_configuration(self, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
        text = message(write_hf_folder(tmp_path, TINY, WEIGHTS, config_changes=changes))
        assert reason in text
        assert str(tmp_path) in text

    def test_missing_and_broken_files(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "only safetensors" in message(folder)
        (folder / "model.safetensors").write_bytes(b"")
        assert "is empty" in message(folder)
        (folder / "config.json").write_bytes(b"[" * 100_000)
        assert "not valid JSON" in message(folder)
        (folder / "config.json").write_bytes(b'{"hidden_size": 1, "hidden_size": 2}')
        assert "'hidden_size' appears twice" in message(folder)
        (folder / "config.json").write_bytes(b" " * (1 << 20) + b"{}")
        assert "larger than" in message(folder)
        (folder / "config.json").write_bytes(b"\xff\xfe")
        assert "not valid JSON" in message(folder)
        (folder / "tokenizer.json").write_text('{"added_tokens": [{"id": "a"}]}')
        assert "added_tokens" in message(folder)

    def test_tensors(self, tmp_path: Path) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        extra = {**WEIGHTS, "model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}
        assert "not part of a Llama" in message(write_hf_folder(tmp_path, TINY, extra))
        short = {**WEIGHTS, name: WEIGHTS[name][:, :-1]}
        assert f"{name!r}: has shape (96, 63)" in message(write_hf_folder(tmp_path, TINY, short))
        missing = {key: values for key, values in WEIGHTS.items() if key != name}
        assert f"{name!r}: missing" in message(write_hf_folder(tmp_path, TINY, missing))

    def test_index_and_shards_must_agree(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS, num_shards=3)
        index = json.loads((folder / INDEX).read_text())
        first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"

        def with_map(**changes: str | None) -> str:
            weight_map = {**index["weight_map"], **changes}
            weight_map = {name: file for name, file in weight_map.items() if file is not None}
            (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
            return message(folder)

        assert index["weight_map"][EMBEDDING] == first
        assert "not listed for this file" in with_map(**{EMBEDDING: None})
        assert "is not in this file" in with_map(**{EMBEDDING: second})
        assert "is not in this file" in with_map(**{LM_HEAD: first})
        for name in (
            "../secret.safetensors",
            "/etc/passwd",
            "a/b.safetensors",
            "..",
            "x.bin",
            "a\\b.safetensors",
            "\0.safetensors",
        ):
            text = with_map(**{EMBEDDING: name})
            assert "not a file name" in text or "NUL" in text
        (folder / INDEX).write_text(json.dumps(index))
        (folder / second).unlink()
        assert f"{second}: is missing" in message(folder)
        for broken in ("{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'):
            (folder / INDEX).write_text(broken)
            assert INDEX in message(folder)


class TestHeader:
    """One wrong thing each, in an otherwise whole file."""

    def write(self, folder: Path, header: Any, data: bytes = b"") -> str:
        (folder / "config.json").write_text(json.dumps(hf_config(TINY)))
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        return message(folder)

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            ({"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, "unsupported type 'F64'"),
            ({"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}, "unsupported type 'I8'"),
            ({"dtype": "F32", "shape": [2]}, "must have dtype"),
            ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "malformed shape"),
            ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "malformed shape"),
            ({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "malformed shape"),
            ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "malformed shape"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "needs 8 bytes"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "malformed data_offsets"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}, "malformed data_offsets"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}, "span 12"),
            ({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, "truncated"),
            ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}, "needs"),
            ({"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}, "truncated"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [2**62, 2**62 + 8]}, "truncated"),
            ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "unsupported type"),
            ("F32", "must have dtype"),
        ],
    )
    def test_entry(self, entry: Any, reason: str, tmp_path: Path) -> None:
        text = self.write(tmp_path, {"x": entry}, bytes(8))
        assert reason in text
        assert "tensor 'x'" in text

    def test_overlap(self, tmp_path: Path) -> None:
        entries = {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        }
        assert "'b': shares bytes with 'a'" in self.write(tmp_path, entries, bytes(12))

    def test_not_an_object(self, tmp_path: Path) -> None:
        assert "must be a JSON object" in self.write(tmp_path, [1, 2])
        assert "not valid JSON" in self.write(tmp_path, b"{nonsense")
        assert "appears twice" in self.write(tmp_path, b'{"a": 1, "a": 2}')

    @pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 9])
    def test_header_longer_than_the_file(self, length: int, tmp_path: Path) -> None:
        write_hf_folder(tmp_path, TINY, WEIGHTS)
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}      ")
        assert "truncated" in message(tmp_path)

    def test_shorter_than_its_length_field(self, tmp_path: Path) -> None:
        write_hf_folder(tmp_path, TINY, WEIGHTS)
        (tmp_path / "model.safetensors").write_bytes(b"\0\0\0")
        assert "truncated" in message(tmp_path)

    def test_metadata_entry_is_not_a_tensor(self, tmp_path: Path) -> None:
        folder = write_hf_folder(tmp_path, TINY, WEIGHTS)
        tensors = {name: ("F32", values.shape, values.tobytes()) for name, values in WEIGHTS.items()}
        raw = safetensors_bytes(tensors)
        size = int.from_bytes(raw[:8], "little")
        header = {"__metadata__": {"format": "pt"}, **json.loads(raw[8 : 8 + size])}
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
        assert np.array_equal(open_checkpoint(folder).dequantize(EMBEDDING), WEIGHTS[EMBEDDING])
