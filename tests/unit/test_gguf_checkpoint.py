"""GGUF files: facts, names, row order, stored bytes, defaults, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from checkpoints import (
    CHATML_SPECIALS,
    LLAMA3_SPECIALS,
    LLAMA31_SCALING,
    TINY,
    TINY_256,
    gguf_name,
    interleave_rows,
    random_weights,
    rope_factors,
    write_gguf,
)
from tampu.core.errors import CheckpointError
from tampu.model.checkpoint import open_checkpoint
from tampu.model.gguf_header import read_gguf_header
from tampu.model.llama_tensors import expected_shapes
from tampu.model.quantization import row_bytes
from tampu.model.tensor import NATIVE_QTYPES

WEIGHTS = random_weights(TINY)
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
DOWN_PROJ = "model.layers.0.mlp.down_proj.weight"


def refusal(tmp_path: Path, **changes: Any) -> str:
    """The message for a tiny file with some metadata changed; dots are written as double underscores."""
    metadata = {key.replace("__", "."): value for key, value in changes.items()}
    path = write_gguf(tmp_path / "bad.gguf", TINY, WEIGHTS, specials=LLAMA3_SPECIALS, metadata=metadata)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.file == str(path)
    return str(caught.value)


class TestFacts:
    def test_configuration_and_counts(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf", TINY, WEIGHTS, qtype="Q8_0", specials=LLAMA3_SPECIALS)
        checkpoint = open_checkpoint(path)
        expected = dataclasses.replace(TINY, rms_norm_eps=float(np.float32(1e-5)), eos_token_ids=(2, 1, 4, 5))
        assert checkpoint.config == expected
        assert checkpoint.name == "Tiny"
        assert checkpoint.quantization == "Q8_0"
        assert checkpoint.num_parameters == sum(values.size for values in WEIGHTS.values())
        assert checkpoint.file_bytes == path.stat().st_size
        assert checkpoint.notices == ()
        assert set(checkpoint.tensor_names()) == set(expected_shapes(TINY))

    def test_tokenizer_of_llama3(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS, specials=LLAMA3_SPECIALS))
        spec = checkpoint.tokenizer_spec
        assert checkpoint.chat_template == "llama3"
        assert spec.tokens[: len(LLAMA3_SPECIALS)] == LLAMA3_SPECIALS
        assert len(spec.tokens) == len(spec.token_types) == spec.vocab_size == TINY.vocab_size
        assert spec.token_types[0] == 3
        assert "he ll" in spec.merges
        assert (spec.pre_tokenizer, spec.add_bos_token, spec.bos_token_id) == ("llama-bpe", True, 1)
        assert spec.eos_token_ids == (2, 1, 4, 5)  # the stored one, then end_of_text, eom_id, eot_id

    def test_tokenizer_of_chatml(self, tmp_path: Path) -> None:
        path = write_gguf(
            tmp_path / "t.gguf",
            TINY,
            WEIGHTS,
            specials=CHATML_SPECIALS,
            metadata={"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.eos_token_id": 0},
        )
        checkpoint = open_checkpoint(path)
        assert checkpoint.chat_template == "chatml"
        assert checkpoint.config.eos_token_ids == (0, 2)
        assert checkpoint.tokenizer_spec.add_bos_token is False

    def test_template_in_the_file_decides_between_forms(self, tmp_path: Path) -> None:
        path = write_gguf(
            tmp_path / "t.gguf",
            TINY,
            WEIGHTS,
            specials=LLAMA3_SPECIALS + CHATML_SPECIALS,
            metadata={"tokenizer.chat_template": "{{ '<|im_start|>' + message['role'] }}"},
        )
        assert open_checkpoint(path).chat_template == "chatml"

    def test_stored_end_tokens_of_every_kind(self, tmp_path: Path) -> None:
        metadata = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 9}
        path = write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS, metadata=metadata)
        assert open_checkpoint(path).config.eos_token_ids == (2, 7, 9)

    def test_missing_metadata_gets_the_defaults_of_llama_cpp(self, tmp_path: Path) -> None:
        config = dataclasses.replace(TINY, num_key_value_heads=4)
        optional = (
            "llama.attention.head_count_kv",
            "llama.attention.key_length",
            "llama.attention.value_length",
            "llama.rope.dimension_count",
            "llama.rope.freq_base",
            "llama.vocab_size",
            "general.name",
            "tokenizer.ggml.pre",
        )
        path = write_gguf(
            tmp_path / "plain.gguf",
            config,
            random_weights(config),
            specials=CHATML_SPECIALS,
            metadata=dict.fromkeys(optional),
        )
        checkpoint = open_checkpoint(path)
        assert checkpoint.config.num_key_value_heads == 4
        assert (checkpoint.config.head_dim, checkpoint.config.rope_theta) == (16, 10000.0)
        assert checkpoint.config.vocab_size == TINY.vocab_size
        assert checkpoint.name == "plain"
        assert checkpoint.tokenizer_spec.pre_tokenizer == "gpt-2"
        assert "pre-tokenizer" in checkpoint.notices[0]

    def test_pre_tokenizer_of_an_early_llama3_file_is_recognised(self, tmp_path: Path) -> None:
        path = write_gguf(
            tmp_path / "t.gguf", TINY, WEIGHTS, specials=LLAMA3_SPECIALS, metadata={"tokenizer.ggml.pre": "default"}
        )
        assert open_checkpoint(path).tokenizer_spec.pre_tokenizer == "llama-bpe"

    def test_rope_factors_become_configuration(self, tmp_path: Path) -> None:
        config = dataclasses.replace(TINY, rope_scaling=LLAMA31_SCALING)
        checkpoint = open_checkpoint(write_gguf(tmp_path / "t.gguf", config, random_weights(config)))
        assert checkpoint.config.rope_freq_factors == tuple(rope_factors(config).tolist())
        assert "rope_freqs.weight" not in checkpoint.tensor_names()

    def test_per_layer_counts_that_agree_count_as_one(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS, metadata={"llama.attention.head_count_kv": [2, 2]})
        assert open_checkpoint(path).config.num_key_value_heads == 2

    def test_mixture_is_called_what_llama_cpp_calls_it(self, tmp_path: Path) -> None:
        weights = random_weights(TINY_256)
        path = tmp_path / "t.gguf"
        write_gguf(path, TINY_256, weights, qtype="Q4_K", metadata={"general.file_type": 15})
        assert open_checkpoint(path).quantization == "Q4_K_M"
        write_gguf(path, TINY_256, weights, qtype="Q6_K", metadata={"general.file_type": 15})
        assert open_checkpoint(path).quantization == "Q6_K"

    def test_folder_with_one_file_means_that_file(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "one.gguf", TINY, WEIGHTS)
        assert open_checkpoint(tmp_path).path == path
        write_gguf(tmp_path / "two.gguf", TINY, WEIGHTS)
        with pytest.raises(CheckpointError, match="2 GGUF files"):
            open_checkpoint(tmp_path)

    @pytest.mark.bundled
    def test_bundled_file(self, bundled_model: Path) -> None:
        checkpoint = open_checkpoint(bundled_model)
        assert (checkpoint.quantization, checkpoint.num_parameters) == ("Q4_1", 134_515_008)
        assert (checkpoint.chat_template, checkpoint.config.eos_token_ids) == ("chatml", (2,))
        assert (checkpoint.config.head_dim, checkpoint.config.tie_word_embeddings) == (64, True)
        assert checkpoint.tokenizer_spec.pre_tokenizer == "smollm"
        assert len(checkpoint.tokenizer_spec.merges) == 48_900


class TestTensors:
    @pytest.mark.parametrize("qtype", [*NATIVE_QTYPES, "Q5_0", "Q5_1", "Q2_K", "Q3_K"])
    def test_values_are_those_of_the_gguf_library(self, qtype: str, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "q.gguf", TINY_256, random_weights(TINY_256), qtype=qtype)
        checkpoint = open_checkpoint(path)
        by_library = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for name, shape in expected_shapes(TINY_256).items():
            stored = by_library[gguf_name(name)]
            values = np.asarray(gguf.dequantize(stored.data, stored.tensor_type)).reshape(shape)
            heads = {"q": TINY_256.num_attention_heads, "k": TINY_256.num_key_value_heads}
            for letter, num_heads in heads.items():
                if name.endswith(f"self_attn.{letter}_proj.weight"):
                    assert np.array_equal(interleave_rows(checkpoint.dequantize(name), num_heads), values)
                    break
            else:
                assert np.array_equal(checkpoint.dequantize(name), values)

    @pytest.mark.parametrize("qtype", NATIVE_QTYPES)
    def test_native_formats_are_handed_out_as_stored(self, qtype: str, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "q.gguf", TINY_256, random_weights(TINY_256), qtype=qtype)
        tensor = open_checkpoint(path).tensor(DOWN_PROJ)
        stored = {t.name: t for t in gguf.GGUFReader(path).tensors}[gguf_name(DOWN_PROJ)]
        assert (tensor.qtype, tensor.shape) == (qtype, (256, 512))
        assert tensor.data.dtype == np.uint8
        assert tensor.data.tobytes() == stored.data.tobytes()
        assert tensor.data.size == 256 * row_bytes(qtype, 512)

    def test_rows_of_q_are_in_hugging_face_order(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS))
        for name, values in WEIGHTS.items():
            assert np.array_equal(checkpoint.dequantize(name), values)

    def test_other_formats_are_converted_with_a_notice(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS, qtypes={Q_PROJ: "Q5_0", DOWN_PROJ: "Q5_1"})
        checkpoint = open_checkpoint(path)
        assert checkpoint.tensor(Q_PROJ).qtype == "F32"
        assert np.abs(checkpoint.dequantize(Q_PROJ) - WEIGHTS[Q_PROJ]).max() < 0.05
        assert [notice.split(" are ")[0] for notice in checkpoint.notices] == [
            "1 tensors stored as Q5_0",
            "1 tensors stored as Q5_1",
        ]

    def test_tensors_outlive_the_checkpoint(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS))
        tensor = checkpoint.tensor(DOWN_PROJ)
        checkpoint.close()
        checkpoint.close()
        assert tensor.data.tobytes() == WEIGHTS[DOWN_PROJ].tobytes()
        with pytest.raises(CheckpointError, match="closed"):
            checkpoint.tensor(DOWN_PROJ)

    def test_unknown_name(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS))
        with pytest.raises(CheckpointError, match="lm_head"):
            checkpoint.tensor("lm_head.weight")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"general__architecture": "gpt2"}, "architecture 'gpt2'"),
            ({"general__type": "adapter"}, "'adapter', not a model"),
            ({"split__count": 2}, "split model"),
            ({"llama__expert_count": 8}, "mixture of experts"),
            ({"llama__attention__causal": False}, "bidirectional"),
            ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0}, "'yarn'"),
            ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0}, "'linear' by 2"),
            ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama'"),
            ({"tokenizer__ggml__token_type": [1, 2, 3]}, "3 token types"),
            ({"tokenizer__ggml__tokens": ["a", "a"], "tokenizer__ggml__token_type": None}, "same spelling"),
            ({"tokenizer__ggml__tokens": [str(i) for i in range(321)], "tokenizer__ggml__token_type": None}, "321"),
            ({"tokenizer__ggml__bos_token_id": 320}, "bos_token_id is 320"),
            ({"tokenizer__ggml__eos_token_id": 99999}, "eos_token_id is 99999"),
            ({"llama__block_count": None}, "'llama.block_count' is missing"),
            ({"llama__block_count": "two"}, "'llama.block_count' must be"),
            ({"llama__block_count": 3}, "'model.layers.2.input_layernorm.weight': missing"),
            ({"llama__block_count": 1}, "not part of a Llama of this configuration"),
            ({"llama__block_count": 4_000_000_000}, "num_hidden_layers is 4000000000"),
            ({"llama__block_count": 4000}, "4000 layers"),
            ({"llama__embedding_length": 128}, "configuration says"),
            ({"llama__vocab_size": 300}, "configuration says (300, 64)"),
            ({"llama__attention__head_count": 0}, "head_count"),
            ({"llama__attention__head_count": [4, 2]}, "the same for all layers"),
            ({"llama__attention__head_count_kv": 3}, "not a multiple"),
            ({"llama__attention__head_count_kv": 0}, "num_key_value_heads is 0"),
            ({"llama__attention__key_length": 15}, "differs from the head size 15"),
            ({"llama__attention__value_length": 8}, "'llama.attention.value_length' differs"),
            ({"llama__rope__dimension_count": 8}, "'llama.rope.dimension_count' differs"),
            ({"llama__rope__freq_base": float("nan")}, "rope_theta is nan"),
            ({"llama__rope__freq_base": float("inf")}, "rope_theta is inf"),
            ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "rms_norm_eps is -1.0"),
            ({"llama__context_length": 0}, "max_position_embeddings is 0"),
            ({"general__alignment": 33}, "general.alignment"),
        ],
    )
    def test_metadata(self, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
        assert reason in refusal(tmp_path, **changes)

    def test_misshapen_missing_and_extra_tensors(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        missing = {name: values for name, values in WEIGHTS.items() if name != DOWN_PROJ}
        for weights, reason in (
            (missing, "missing"),
            ({**WEIGHTS, DOWN_PROJ: WEIGHTS[DOWN_PROJ][:-1]}, "has shape"),
            ({**WEIGHTS, "model.layers.2.mlp.down_proj.weight": WEIGHTS[DOWN_PROJ]}, "not part of"),
            ({**WEIGHTS, "lm_head.weight": WEIGHTS[DOWN_PROJ]}, "has shape"),
        ):
            write_gguf(path, TINY, weights)
            with pytest.raises(CheckpointError, match=reason):
                open_checkpoint(path)

    def test_unknown_tensor_is_refused_by_name(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "bias.gguf", "llama")
        writer.add_tensor("blk.0.attn_q.bias", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.bias"):
            open_checkpoint(tmp_path / "bias.gguf")

    def test_type_that_cannot_be_dequantised_is_refused_by_name(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS)
        data = bytearray(path.read_bytes())
        name = b"blk.0.ffn_down.weight"
        place = data.index(name) + len(name) + 4 + 16
        data[place : place + 4] = (28).to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="unsupported type F64") as caught:
            open_checkpoint(path)
        assert caught.value.tensor == "blk.0.ffn_down.weight"

    def test_big_endian_and_old_versions(self, tmp_path: Path) -> None:
        path = tmp_path / "t.gguf"
        for version, reason in ((b"\0\0\0\3", "big-endian"), (b"\1\0\0\0", "version 1"), (b"\4\0\0\0", "version 4")):
            path.write_bytes(b"GGUF" + version + bytes(16))
            with pytest.raises(CheckpointError, match=reason):
                open_checkpoint(path)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no such file"):
            open_checkpoint(tmp_path / "nothing.gguf")
        with pytest.raises(CheckpointError, match="neither"):
            open_checkpoint(tmp_path)


def test_header_reader_and_gguf_library_agree(tmp_path: Path) -> None:
    import mmap

    path = write_gguf(tmp_path / "t.gguf", TINY, WEIGHTS, qtype="Q4_0", specials=LLAMA3_SPECIALS)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header = read_gguf_header(path, mapped)
    library = gguf.GGUFReader(path)
    fields = {key: field for key, field in library.fields.items() if not key.startswith("GGUF.")}
    assert fields.keys() == header.metadata.keys()
    for key, field in fields.items():
        value = header.metadata[key]
        assert field.contents() == (list(value) if isinstance(value, (tuple, np.ndarray)) else value)
    assert [(t.name, t.data_offset, t.n_bytes, t.tensor_type.name) for t in library.tensors] == [
        (t.name, t.offset, t.num_bytes, t.qtype) for t in header.tensors.values()
    ]
