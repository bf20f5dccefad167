"""The BERT encoder: goldens of sentence-transformers, a plain twin in double precision, and files that are wrong."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from checkpoints import safetensors_bytes, uniform
from tampu import _native
from tampu.core.errors import CheckpointError, ConfigError
from tampu.model.bert import BertCheckpoint, BertConfig, SentencePooling, expected_shapes, open_bert
from tampu.model.bundled import bundled_embedding_path
from tampu.runner.bert import BertEncoder
from tampu.text.wordpiece import load_wordpiece

GOLDENS = Path(__file__).parent.parent / "goldens" / "minilm_vectors.json"
TINY = BertConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=24,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "llama", "##s", "road", "caf", "##e", "!", "京", "of"]
Weights = dict[str, npt.NDArray[np.float32]]


def random_weights(config: BertConfig) -> Weights:
    weights = {}
    for index, (name, shape) in enumerate(expected_shapes(config).items()):
        values = uniform(index, math.prod(shape)).reshape(shape)
        weights[name] = 1 + values / 4 if name.endswith("LayerNorm.weight") else values * 0.5
    return weights


def write_folder(
    folder: Path,
    config: BertConfig = TINY,
    *,
    changes: dict[str, Any] | None = None,
    prefix: str = "",
    pooling: dict[str, Any] | None = None,
    modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    max_seq_length: int | None = None,
) -> Path:
    """A tiny encoder as sentence-transformers lays one out; without `pooling` as plain transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"model_type": "bert", **dataclasses.asdict(config), **(changes or {})}
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = {
        prefix + name: ("F32", values.shape, values.astype("<f4").tobytes())
        for name, values in random_weights(config).items()
    }
    length = config.max_position_embeddings
    tensors["embeddings.position_ids"] = ("I64", (1, length), np.arange(length, dtype="<i8").tobytes())
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    if pooling is not None:
        kinds = [
            {"type": f"sentence_transformers.models.{kind}", "path": "" if i == 0 else f"{i}_{kind}"}
            for i, kind in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(kinds))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        if max_seq_length is not None:
            (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_seq_length}))
    return folder


def plain_encode(
    weights: Weights, config: BertConfig, pooling: SentencePooling, token_ids: list[int]
) -> npt.NDArray[np.float64]:
    """The definition of BERT, one text at a time in float64."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}

    def norm(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_eps)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    activations: dict[str, Callable[[float], float]] = {
        "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
        "gelu_new": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        "relu": lambda v: max(v, 0.0),
    }
    act = np.vectorize(activations[config.hidden_act])
    x = w["embeddings.word_embeddings.weight"][token_ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(token_ids)], "embeddings.LayerNorm")
    head_dim = config.hidden_size // config.num_attention_heads
    for i in range(config.num_hidden_layers):
        p = f"encoder.layer.{i}."
        q, k, v = (linear(x, f"{p}attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for h in range(config.num_attention_heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(head_dim))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        attended = linear(np.concatenate(heads, -1), f"{p}attention.output.dense")
        x = norm(x + attended, f"{p}attention.output.LayerNorm")
        x = norm(x + linear(act(linear(x, f"{p}intermediate.dense")), f"{p}output.dense"), f"{p}output.LayerNorm")
    pooled = {
        "mean": x.mean(0),
        "cls": x[0],
        "max": x.max(0),
        "mean_sqrt_len_tokens": x.sum(0) / math.sqrt(len(x)),
    }[pooling.mode]
    return pooled / np.linalg.norm(pooled) if pooling.is_normalized else pooled


def random_texts(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[2, *(rng.randrange(40) for _ in range(rng.randint(0, 22))), 3] for _ in range(count)]


def encoder_of(folder: Path, **settings: Any) -> tuple[BertCheckpoint, BertEncoder]:
    checkpoint = open_bert(folder)
    encoder = BertEncoder(checkpoint, **settings)
    checkpoint.close()
    return checkpoint, encoder


# -- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.bundled
def test_goldens_of_sentence_transformers() -> None:
    folder = bundled_embedding_path()
    assert folder is not None, "the bundled embedding model is not installed: run `make test`"
    checkpoint, encoder = encoder_of(folder)
    assert checkpoint.num_parameters == 22_713_216
    assert checkpoint.pooling == SentencePooling("mean", True, 256, "")
    tokenizer = load_wordpiece(checkpoint.tokenizer_spec, max_length=256)
    rows = json.loads(GOLDENS.read_text(encoding="utf-8"))["rows"]
    token_ids = tokenizer.encode([row["text"] for row in rows])
    assert [len(ids) for ids in token_ids] == [row["num_tokens"] for row in rows]
    assert max(len(ids) for ids in token_ids) == 256, "one text is cut"
    expected = np.stack([np.frombuffer(base64.b64decode(row["vector"]), dtype="<f4") for row in rows])
    vectors = encoder.encode(token_ids)
    cosines = (vectors * expected).sum(-1)
    assert cosines.min() > 0.999999
    assert np.abs(vectors - expected).max() < 1e-5
    # and without tokenizer.json, from vocab.txt alone
    spec = dataclasses.replace(checkpoint.tokenizer_spec, tokenizer_json=None)
    assert load_wordpiece(spec, max_length=256).encode([row["text"] for row in rows]) == token_ids
    encoder.close()


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len_tokens"])
def test_every_activation_and_pooling_against_the_plain_twin(tmp_path: Path, hidden_act: str, mode: str) -> None:
    config = dataclasses.replace(TINY, hidden_act=hidden_act)
    folder = write_folder(tmp_path / "m", config, pooling={"pooling_mode": mode})
    checkpoint, encoder = encoder_of(folder)
    texts = random_texts(1, 8)
    vectors = encoder.encode(texts)
    weights = random_weights(config)
    expected = [plain_encode(weights, config, checkpoint.pooling, ids) for ids in texts]
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    encoder.close()


@pytest.mark.parametrize("isa", _native.linear.available_isas())
def test_a_vector_does_not_depend_on_its_neighbours(tmp_path: Path, isa: str) -> None:
    """To the last bit: alone, among others, in another order, on other numbers of threads."""
    config = dataclasses.replace(TINY, hidden_size=96, intermediate_size=160, num_attention_heads=3)
    folder = write_folder(tmp_path / "m", config, pooling={"pooling_mode": "mean"})
    texts = random_texts(2, 150)
    _, encoder = encoder_of(folder, num_threads=1, isa=isa)
    alone = np.concatenate([encoder.encode([ids]) for ids in texts])
    encoder.close()
    for num_threads in (1, 3):
        _, encoder = encoder_of(folder, num_threads=num_threads, isa=isa)
        assert np.array_equal(encoder.encode(texts), alone)
        assert np.array_equal(encoder.encode(texts[::-1])[::-1], alone)
        assert np.array_equal(encoder.encode(texts[3:60]), alone[3:60])
        encoder.close()


def test_an_instruction_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    checkpoint = open_bert(write_folder(tmp_path / "m"))
    with pytest.raises(ConfigError, match="isa"):
        BertEncoder(checkpoint, isa="avx1024")


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_plain_transformers_folder_means_mean_without_normalisation(tmp_path: Path) -> None:
    checkpoint = open_bert(write_folder(tmp_path / "m", prefix="bert."))
    assert checkpoint.pooling == SentencePooling("mean", False, 24, "")
    assert np.array_equal(
        checkpoint.weight("embeddings.LayerNorm.bias"), random_weights(TINY)["embeddings.LayerNorm.bias"]
    )
    checkpoint.close()


def test_old_and_new_spelling_of_the_pooling(tmp_path: Path) -> None:
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = write_folder(tmp_path / "a", pooling=old, modules=("Transformer", "Pooling"), max_seq_length=9)
    assert open_bert(folder).pooling == SentencePooling("cls", False, 9, "")
    folder = write_folder(tmp_path / "b", pooling={"pooling_mode": ["max"]}, max_seq_length=10_000)
    assert open_bert(folder).pooling == SentencePooling("max", True, 24, "")


def test_a_default_prompt_is_put_before_every_text(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", pooling={"pooling_mode": "mean"})
    settings = {"default_prompt_name": "query", "prompts": {"query": "the "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    checkpoint = open_bert(folder)
    tokenizer = load_wordpiece(checkpoint.tokenizer_spec, max_length=24, prompt=checkpoint.pooling.prompt)
    assert tokenizer.encode(["llamas"]) == [[2, 5, 6, 7, 3]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [2, 3]),
        ("The LLAMAS!", [2, 5, 6, 7, 11, 3]),
        ("Café of 京", [2, 9, 10, 13, 12, 3]),
        ("unknownword", [2, 1, 3]),
        ("[SEP]", [2, 3, 3]),
        ("the " * 100, [2, *[5] * 22, 3]),
    ],
)
def test_wordpiece_from_vocab_txt(tmp_path: Path, text: str, expected: list[int]) -> None:
    checkpoint = open_bert(write_folder(tmp_path / "m"))
    assert load_wordpiece(checkpoint.tokenizer_spec, max_length=24).encode([text]) == [expected]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "roberta"}, "'roberta'"),
        ({"model_type": "llama"}, "'llama'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "swish"}, "'swish'"),
        ({"hidden_size": 33}, "multiple of num_attention_heads"),
        ({"hidden_size": 64}, "config.json asks for"),
        ({"num_hidden_layers": 3}, "is missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"layer_norm_eps": -1}, "layer_norm_eps"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = write_folder(tmp_path / "m", changes=changes)
    with pytest.raises(CheckpointError, match=reason):
        open_bert(folder)


@pytest.mark.parametrize(
    ("pooling", "modules", "reason"),
    [
        ({"pooling_mode": "weightedmean"}, ("Transformer", "Pooling"), "weightedmean"),
        ({"pooling_mode_lasttoken": True}, ("Transformer", "Pooling"), "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, ("Transformer", "Pooling"), "cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, ("Transformer", "Pooling"), "include_prompt"),
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), "Dense"),
        ({"pooling_mode": "mean"}, ("Transformer",), "no Pooling"),
        ({"pooling_mode": "mean"}, ("CLIPModel", "Pooling"), "CLIPModel"),
    ],
)
def test_pooling_that_is_not_computed_here_is_refused(
    tmp_path: Path, pooling: dict[str, Any], modules: tuple[str, ...], reason: str
) -> None:
    folder = write_folder(tmp_path / "m", pooling=pooling, modules=modules)
    with pytest.raises(CheckpointError, match=reason):
        open_bert(folder)


@pytest.mark.parametrize("where", ["../outside", "/etc", "a/b", ".."])
def test_a_module_path_cannot_leave_the_folder(tmp_path: Path, where: str) -> None:
    folder = write_folder(tmp_path / "m", pooling={"pooling_mode": "mean"})
    kinds = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": where}]
    (folder / "modules.json").write_text(json.dumps(kinds))
    with pytest.raises(CheckpointError, match="no folder name"):
        open_bert(folder)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        open_bert(tmp_path / "nothing")
    folder = write_folder(tmp_path / "m")
    for file, reason in (
        ("model.safetensors", "safetensors"),
        ("vocab.txt", "neither"),
        ("config.json", "config.json"),
    ):
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        with pytest.raises(CheckpointError, match=reason):
            open_bert(folder)
        (folder / file).write_bytes(content)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_wordpiece(open_bert(folder).tokenizer_spec, max_length=24)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(f"w{i}" for i in range(9)))
    with pytest.raises(CheckpointError, match=r"lacks the token \[UNK\]"):
        load_wordpiece(open_bert(folder).tokenizer_spec, max_length=24)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *(f"w{i}" for i in range(40))]))
    with pytest.raises(CheckpointError, match="vocab_size is 40"):
        load_wordpiece(open_bert(folder).tokenizer_spec, max_length=24)
