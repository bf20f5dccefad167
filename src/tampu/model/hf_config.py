"""The JSON files of a Hugging Face folder: config.json, generation_config.json, and the vocabulary's special tokens.

Refuses to know weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tampu.core.errors import CheckpointError
from tampu.model.config import Llama3RopeScaling, ModelConfig
from tampu.model.safetensors_header import parse_json
from tampu.model.vocabulary import end_token_ids

_MAX_CONFIG_BYTES = 1 << 20
_MAX_TOKENIZER_BYTES = 1 << 26


def read_json_file(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises CheckpointError."""
    with path.open("rb") as file:
        num_bytes = file.seek(0, 2)
        if num_bytes > max_bytes:
            raise CheckpointError(str(path), f"is larger than {max_bytes} bytes")
        file.seek(0)
        raw = file.read(num_bytes)
    return parse_json(str(path), raw, "it")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Special tokens of a folder's tokenizer. Empty when the folder has none."""

    tokenizer_json: str | None = None
    token_ids: Mapping[str, int] = field(default_factory=dict)  # special tokens only
    template_text: str = ""  # never run
    add_bos_token: bool | None = None  # None = the tokenizer configuration does not say
    first_template_ids: tuple[int, ...] = ()  # what the tokenizer's post-processor puts before a text

    def adds_bos(self, bos_token_id: int | None) -> bool:
        """True when a prompt begins with the BOS token."""
        if self.add_bos_token is not None:
            return self.add_bos_token
        return bos_token_id is not None and bos_token_id in self.first_template_ids


def read_vocabulary(folder: Path) -> Vocabulary:
    """Special tokens from tokenizer.json and tokenizer_config.json. Raises CheckpointError when they are broken."""
    tokenizer_path = folder / "tokenizer.json"
    if not tokenizer_path.is_file():
        return Vocabulary()
    tokenizer = read_json_file(tokenizer_path, _MAX_TOKENIZER_BYTES)
    added = tokenizer.get("added_tokens", [])
    if not isinstance(added, list):
        raise CheckpointError(str(tokenizer_path), "added_tokens must be a list")
    token_ids: dict[str, int] = {}
    for entry in added:
        if not isinstance(entry, dict) or type(entry.get("content")) is not str or type(entry.get("id")) is not int:
            raise CheckpointError(str(tokenizer_path), "added_tokens must hold objects with id and content")
        token_ids[entry["content"]] = entry["id"]
    config_path = folder / "tokenizer_config.json"
    config = read_json_file(config_path, _MAX_TOKENIZER_BYTES) if config_path.is_file() else {}
    template, add_bos = config.get("chat_template"), config.get("add_bos_token")
    return Vocabulary(
        tokenizer_json=str(tokenizer_path),
        token_ids=token_ids,
        template_text=template if isinstance(template, str) else "",
        add_bos_token=add_bos if isinstance(add_bos, bool) else None,
        first_template_ids=_first_template_ids(tokenizer.get("post_processor"), token_ids),
    )


def _first_template_ids(post_processor: Any, token_ids: Mapping[str, int]) -> tuple[int, ...]:
    """Ids of special tokens that open the post-processor's template for one text."""
    if not isinstance(post_processor, dict):
        return ()
    nested = post_processor.get("processors")
    for processor in (post_processor, *(nested if isinstance(nested, list) else ())):
        if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
            continue
        single = processor.get("single")
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        if isinstance(name, str) and name in token_ids:
            return (token_ids[name],)
    return ()


def read_model_config(folder: Path, token_ids: Mapping[str, int]) -> ModelConfig:
    """ModelConfig from config.json and generation_config.json, with Hugging Face's defaults for what is missing."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(str(folder), "holds no config.json")
    fields = _Fields(str(path), read_json_file(path, _MAX_CONFIG_BYTES))
    _refuse_other_models(fields)
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    if num_heads < 1:
        raise CheckpointError(str(path), f"num_attention_heads is {num_heads}")
    eos_token_ids = _eos_token_ids(folder, fields)
    rope = _rope_parameters(fields)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_heads),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10000.0)),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        tie_word_embeddings=fields.truth("tie_word_embeddings", False),
        rope_scaling=_rope_scaling(rope),
        bos_token_id=_first_id(fields),
        eos_token_ids=eos_token_ids or end_token_ids(token_ids),
    )


class _Fields:
    """Typed look-ups that name file and field. A field that is null counts as missing."""

    def __init__(self, file: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self.file = file
        self.prefix = prefix
        self._values = values

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def fail(self, name: str, wanted: str) -> CheckpointError:
        if self.get(name) is None:
            return CheckpointError(self.file, f"{self.prefix}{name} is missing")
        return CheckpointError(self.file, f"{self.prefix}{name} must be {wanted}, it is {str(self.get(name))[:60]!r}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name) if self.get(name) is not None else default
        if type(value) is not int:
            raise self.fail(name, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name) if self.get(name) is not None else default
        if value is None or type(value) not in (int, float):
            raise self.fail(name, "a number")
        try:
            return float(value)
        except OverflowError as error:
            raise self.fail(name, "a number of sane size") from error

    def truth(self, name: str, default: bool) -> bool:
        value = self.get(name) if self.get(name) is not None else default
        if type(value) is not bool:
            raise self.fail(name, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        value = self.get(name) if self.get(name) is not None else default
        if type(value) is not str:
            raise self.fail(name, "a string")
        return value

    def inner(self, name: str) -> _Fields | None:
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.fail(name, "an object")
        return None if value is None else _Fields(self.file, value, f"{self.prefix}{name}.")


def _refuse_other_models(fields: _Fields) -> None:
    architectures = fields.get("architectures")
    model_type = fields.text("model_type", "llama")
    if model_type != "llama" or (architectures is not None and architectures != ["LlamaForCausalLM"]):
        found = f"{architectures or model_type}"[:100]
        raise CheckpointError(fields.file, f"describes {found}; only LlamaForCausalLM is supported")
    for name in ("attention_bias", "mlp_bias", "rope_interleaved"):
        if fields.truth(name, False):
            raise CheckpointError(fields.file, f"{name} is true, which is not supported")
    if fields.text("hidden_act", "silu") != "silu":
        raise CheckpointError(fields.file, f"hidden_act is {fields.get('hidden_act')!r}; only 'silu' is supported")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(fields.file, "partial_rotary_factor is not supported")
    quantization = fields.inner("quantization_config")
    if quantization is not None:
        method = quantization.text("quant_method", "unknown")
        raise CheckpointError(
            fields.file, f"is quantised by {method[:40]!r}; use an unquantised folder or a GGUF file of the model"
        )


def _rope_parameters(fields: _Fields) -> _Fields:
    """`rope_parameters` (transformers 5) or `rope_scaling` (before); empty when there is neither."""
    newer, older = fields.inner("rope_parameters"), fields.inner("rope_scaling")
    return newer or older or _Fields(fields.file, {}, "rope_scaling.")


def _rope_scaling(rope: _Fields) -> Llama3RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(
            rope.file, f"{rope.prefix}rope_type is {kind[:40]!r}; 'llama3' and 'default' are supported"
        )
    return Llama3RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
    )


def _first_id(fields: _Fields) -> int | None:
    return None if fields.get("bos_token_id") is None else fields.integer("bos_token_id")


def _eos_token_ids(folder: Path, fields: _Fields) -> tuple[int, ...]:
    """The list of generation_config.json; where there is none, the ids of config.json."""
    path = folder / "generation_config.json"
    sources = [fields]
    if path.is_file():
        sources.insert(0, _Fields(str(path), read_json_file(path, _MAX_CONFIG_BYTES)))
    for source in sources:
        value = source.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(token_id) is int for token_id in ids) or len(ids) > 1024:
            raise source.fail("eos_token_id", "a token id or a list of them")
        return tuple(dict.fromkeys(ids))
    return ()
