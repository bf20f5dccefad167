"""What a BERT text encoder is: config, weights, and how sentence-transformers turns its output into one vector.

Reads a Hugging Face folder (config.json, safetensors, vocab.txt or tokenizer.json) together with the files
sentence-transformers adds (modules.json, the pooling module's config.json, sentence_bert_config.json). Refuses by name
whatever would change the vectors and is not computed here. No arithmetic on activations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tampu.core.errors import CheckpointError
from tampu.model.hf_config import read_json_file
from tampu.model.quantization import dequantize_tensor
from tampu.model.safetensors_checkpoint import SafetensorsShards, open_shards

_MAX_CONFIG_BYTES = 1 << 20
_LIMITS = {  # a hostile config must not make us allocate or loop: far above any known BERT
    "vocab_size": 1 << 21,
    "hidden_size": 1 << 14,
    "intermediate_size": 1 << 16,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "max_position_embeddings": 1 << 17,
    "type_vocab_size": 64,
}
_ACTIVATIONS = ("gelu", "gelu_new", "relu")
_POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens")
_OLD_POOLING_KEYS = {  # the spelling before sentence-transformers had one `pooling_mode`
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_IGNORED_SUFFIXES = ("position_ids", "token_type_ids")  # buffers of old exports, 0, 1, 2, …


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Shape and constants of one BERT encoder. Names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str  # gelu (exact), gelu_new (tanh), relu


@dataclass(frozen=True, slots=True)
class SentencePooling:
    """How token vectors become one vector."""

    mode: str = "mean"  # mean, cls, max, mean_sqrt_len_tokens
    is_normalized: bool = True
    max_seq_length: int = 512  # tokens, [CLS] and [SEP] included; what is longer is cut
    prompt: str = ""  # put before every text, when the folder names a default prompt


@dataclass(frozen=True, slots=True)
class WordPieceSpec:
    """Where the vocabulary is: `tokenizer_json` when the folder has one, else `vocab_txt` and how to read text."""

    tokenizer_json: str | None
    vocab_txt: str | None
    is_lowercased: bool
    strips_accents: bool | None  # None = as is_lowercased, which is BERT's own rule
    splits_chinese_chars: bool
    vocab_size: int
    source: str


class BertCheckpoint:
    """An opened folder; `close` it when the weights are read."""

    def __init__(
        self,
        path: Path,
        config: BertConfig,
        pooling: SentencePooling,
        tokenizer_spec: WordPieceSpec,
        shards: SafetensorsShards,
        prefix: str,
    ) -> None:
        self.path = path
        self.name = path.name
        self.config = config
        self.pooling = pooling
        self.tokenizer_spec = tokenizer_spec
        self.file_bytes = shards.file_bytes
        self.num_parameters = sum(int(np.prod(shape)) for shape in shards.shapes().values())
        self._shards = shards
        self._prefix = prefix

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor by its name in BertModel, as float32 in its own shape."""
        return dequantize_tensor(self._shards.read(self._prefix + name))

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        self._shards.close()


def open_bert(path: str | Path) -> BertCheckpoint:
    """Open and check an encoder's folder. Raises CheckpointError; on any error nothing stays open."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(str(folder), "is not a folder; an embedding model is a Hugging Face folder")
    if not (folder / "config.json").is_file():
        raise CheckpointError(str(folder), "holds no config.json")
    config = _read_config(folder)
    pooling = _read_pooling(folder, config)
    tokenizer_spec = _read_tokenizer_spec(folder, config)
    shards = open_shards(folder, ignored_suffixes=_IGNORED_SUFFIXES)
    try:
        prefix = _check_tensors(folder, config, shards)
        return BertCheckpoint(folder, config, pooling, tokenizer_spec, shards, prefix)
    except BaseException:
        shards.close()
        raise


def expected_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that is read, by its name in BertModel."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}."
        for name, out, into in (
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            shapes[f"{layer}{name}.weight"] = (out, into)
            shapes[f"{layer}{name}.bias"] = (out,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{name}.weight"] = (hidden,)
            shapes[f"{layer}{name}.bias"] = (hidden,)
    return shapes


def _check_tensors(folder: Path, config: BertConfig, shards: SafetensorsShards) -> str:
    """Every expected tensor is there in its shape. Returns the prefix of their names: checkpoints with a head on top
    have one."""
    shapes = shards.shapes()
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in shapes else ""
    for name, shape in expected_shapes(config).items():
        found = shapes.get(prefix + name)
        if found is None:
            raise CheckpointError(str(folder), "is missing", tensor=prefix + name)
        if found != shape:
            raise CheckpointError(str(folder), f"has shape {found}, config.json asks for {shape}", tensor=prefix + name)
    return prefix


def _read_config(folder: Path) -> BertConfig:
    path = folder / "config.json"
    raw = read_json_file(path, _MAX_CONFIG_BYTES)
    model_type = raw.get("model_type")
    if model_type != "bert":
        raise CheckpointError(
            str(path), f"model_type is {str(model_type)[:40]!r}; embedding models of type 'bert' can be served"
        )
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(str(path), "position_embedding_type must be 'absolute'")
    if raw.get("is_decoder", False):
        raise CheckpointError(str(path), "is_decoder is true; only encoders give embeddings")
    activation = raw.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            str(path), f"hidden_act is {str(activation)[:40]!r}, not one of {', '.join(_ACTIVATIONS)}"
        )
    sizes = {key: _size(path, raw, key, limit) for key, limit in _LIMITS.items()}
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise CheckpointError(str(path), "hidden_size must be a multiple of num_attention_heads")
    eps = raw.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float | int) or isinstance(eps, bool) or not 0 <= eps < 1:
        raise CheckpointError(str(path), "layer_norm_eps must be a small number")
    return BertConfig(**sizes, layer_norm_eps=float(eps), hidden_act=activation)


def _size(path: Path, raw: dict[str, Any], key: str, limit: int) -> int:
    value = raw.get(key, 2 if key == "type_vocab_size" else None)
    if type(value) is not int or not 1 <= value <= limit:
        raise CheckpointError(str(path), f"{key} must be a whole number from 1 to {limit}")
    return value


def _read_tokenizer_spec(folder: Path, config: BertConfig) -> WordPieceSpec:
    tokenizer_json, vocab_txt = folder / "tokenizer.json", folder / "vocab.txt"
    if not tokenizer_json.is_file() and not vocab_txt.is_file():
        raise CheckpointError(str(folder), "holds neither tokenizer.json nor vocab.txt")
    settings: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = read_json_file(folder / "tokenizer_config.json", _MAX_CONFIG_BYTES)
    strips_accents = settings.get("strip_accents")
    return WordPieceSpec(
        tokenizer_json=str(tokenizer_json) if tokenizer_json.is_file() else None,
        vocab_txt=str(vocab_txt) if vocab_txt.is_file() else None,
        is_lowercased=settings.get("do_lower_case", True) is True,
        strips_accents=strips_accents if isinstance(strips_accents, bool) else None,
        splits_chinese_chars=settings.get("tokenize_chinese_chars", True) is True,
        vocab_size=config.vocab_size,
        source=str(folder),
    )


def _read_pooling(folder: Path, config: BertConfig) -> SentencePooling:
    """What sentence-transformers' own files say; without them its default: mean of all tokens, not normalised."""
    limit = config.max_position_embeddings
    if not (folder / "modules.json").is_file():
        return SentencePooling(mode="mean", is_normalized=False, max_seq_length=limit)
    mode, is_normalized = "", False
    for index, module in enumerate(_read_modules(folder)):
        kind, where = module["type"].rsplit(".", 1)[-1], module["path"]
        if index == 0 and kind == "Transformer" and where == "":
            continue
        if index > 0 and kind == "Pooling" and not mode:
            mode = _read_pooling_mode(folder, where)
        elif mode and kind == "Normalize":
            is_normalized = True
        else:
            raise CheckpointError(
                str(folder / "modules.json"),
                f"names module {index}, {module['type'][:80]!r}; Transformer, Pooling and Normalize can be computed",
            )
    if not mode:
        raise CheckpointError(str(folder / "modules.json"), "names no Pooling module")
    max_seq_length = limit
    if (folder / "sentence_bert_config.json").is_file():
        settings = read_json_file(folder / "sentence_bert_config.json", _MAX_CONFIG_BYTES)
        value = settings.get("max_seq_length")
        if value is not None:
            if type(value) is not int or value < 3:
                raise CheckpointError(str(folder / "sentence_bert_config.json"), "max_seq_length must be at least 3")
            max_seq_length = min(value, limit)
    return SentencePooling(mode, is_normalized, max_seq_length, _read_default_prompt(folder))


def _read_modules(folder: Path) -> list[dict[str, str]]:
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_bytes()[:_MAX_CONFIG_BYTES])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"is not valid JSON ({error})") from error
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str) for m in modules
    ):
        raise CheckpointError(str(path), "must be a list of objects with type and path")
    return modules


def _read_pooling_mode(folder: Path, where: str) -> str:
    if where in ("", ".", "..") or Path(where).name != where:
        raise CheckpointError(
            str(folder / "modules.json"), f"the Pooling module's path {where[:80]!r} is no folder name"
        )
    path = folder / where / "config.json"
    if not path.is_file():
        raise CheckpointError(str(path), "is missing, but modules.json names it")
    settings = read_json_file(path, _MAX_CONFIG_BYTES)
    mode = settings.get("pooling_mode")
    if mode is None:
        active = [new for old, new in _OLD_POOLING_KEYS.items() if settings.get(old) is True]
        mode = active[0] if len(active) == 1 else active or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in _POOLINGS:
        raise CheckpointError(str(path), f"pooling_mode is {str(mode)[:80]!r}, not one of {', '.join(_POOLINGS)}")
    if settings.get("include_prompt", True) is not True:
        raise CheckpointError(str(path), "include_prompt must be true")
    return str(mode)


def _read_default_prompt(folder: Path) -> str:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return ""
    settings = read_json_file(path, _MAX_CONFIG_BYTES)
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise CheckpointError(str(path), "default_prompt_name names no text in prompts")
    return str(prompts[name])
