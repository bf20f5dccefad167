"""A Llama in a GGUF file: its metadata as ModelConfig and TokenizerSpec, its tensors under Hugging Face names.

llama.cpp's converter reorders the rows of q and k for its interleaved rotation; they are put back here, whole rows
at a time, so that every runner knows one order only.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tampu.core.errors import CheckpointError
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.model.checkpoint import Checkpoint
from tampu.model.config import ModelConfig, check_config
from tampu.model.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from tampu.model.llama_tensors import EMBEDDING, FINAL_NORM, LM_HEAD, check_tensors
from tampu.model.quantization import dequantize_bytes
from tampu.model.tensor import NATIVE_QTYPES, Tensor
from tampu.model.vocabulary import chat_template_kind, end_token_ids, is_llama3_vocabulary

_ROPE_FACTORS = "rope_freqs.weight"
# GGUF's tensor names and Hugging Face's; inside a layer, without prefix and ".weight".
GLOBAL_NAMES = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": LM_HEAD}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z_]+)\.weight")
# llama.cpp's other names of the same pre-tokenizer.
_PRE_TOKENIZER_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt2": "gpt-2"}
_FILE_TYPES = {12: "Q3_K_M", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M"}  # llama.cpp's mixtures


def open_gguf(path: Path) -> Checkpoint:
    """Open and check a GGUF file. Raises CheckpointError; on any error nothing stays open."""
    with path.open("rb") as file:
        num_bytes = file.seek(0, 2)
        if num_bytes == 0:
            raise CheckpointError(str(path), "is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = read_gguf_header(path, mapped)
        return _build_checkpoint(path, mapped, header)
    except BaseException:
        mapped.close()
        raise


def _build_checkpoint(path: Path, mapped: mmap.mmap, header: GgufHeader) -> Checkpoint:
    metadata = _Metadata(str(path), header.metadata)
    tensors, factors = _rename_tensors(str(path), header.tensors, mapped)
    tokens = metadata.strings("tokenizer.ggml.tokens")
    token_ids = {token: index for index, token in enumerate(tokens)}
    config = _read_config(metadata, tensors, factors, token_ids)
    check_config(str(path), config)
    check_tensors(str(path), config, {name: tensor.shape for name, tensor in tensors.items()})
    spec, notices = _read_tokenizer(metadata, config, tokens, token_ids)
    return Checkpoint(
        path=path,
        name=metadata.text("general.name", path.stem) or path.stem,
        config=config,
        tokenizer_spec=spec,
        quantization=_quantization(metadata, tensors),
        num_parameters=sum(_num_values(tensor) for tensor in tensors.values()),
        file_bytes=len(mapped),
        chat_template=chat_template_kind(token_ids, metadata.text("tokenizer.chat_template", "")),
        source=_GgufTensors(mapped, tensors, config),
        notices=(*notices, *_conversion_notices(tensors)),
    )


class _Metadata:
    """Typed look-ups that name the key when the type is wrong."""

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        self.file = file
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _fail(self, key: str, wanted: str) -> CheckpointError:
        if key not in self._values:
            return CheckpointError(self.file, f"metadata {key!r} is missing")
        return CheckpointError(self.file, f"metadata {key!r} must be {wanted}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._fail(key, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; an array of equal ones (one per layer) counts as that number."""
        value = self._values.get(key, default)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu" and (value == value[0]).all():
            value = int(value[0])
        if type(value) is not int:
            raise self._fail(key, "one whole number, the same for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if type(value) not in (int, float):
            raise self._fail(key, "a number")
        return float(value)

    def truth(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if type(value) is not bool:
            raise self._fail(key, "true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._values.get(key, ())
        if not isinstance(value, tuple):
            raise self._fail(key, "an array of strings")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._values.get(key)
        if value is None:
            return ()
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise self._fail(key, "an array of whole numbers")
        return tuple(value.tolist())


def _rename_tensors(
    file: str, found: Mapping[str, GgufTensor], mapped: mmap.mmap
) -> tuple[dict[str, GgufTensor], tuple[float, ...] | None]:
    """Tensors by Hugging Face name, and the RoPE factors, which are configuration rather than a weight."""
    tensors = {}
    factors = None
    for name, tensor in found.items():
        layer = _LAYER_TENSOR.fullmatch(name)
        if name == _ROPE_FACTORS:
            # 2**12 values of at most 8 bytes: no head is larger, see check_config.
            if len(tensor.shape) != 1 or tensor.shape[0] > 1 << 12:
                raise CheckpointError(file, f"has shape {tensor.shape}, must be (head_dim / 2,)", tensor=name)
            raw = np.frombuffer(mapped[tensor.offset : tensor.offset + tensor.num_bytes], dtype=np.uint8)
            factors = tuple(dequantize_bytes(raw, tensor.qtype, tensor.shape).tolist())
        elif name in GLOBAL_NAMES:
            tensors[GLOBAL_NAMES[name]] = tensor
        elif layer is not None and layer[2] in LAYER_NAMES:
            tensors[f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.weight"] = tensor
        else:
            raise CheckpointError(file, "is not part of a Llama", tensor=name)
    return tensors, factors


def _read_config(
    metadata: _Metadata,
    tensors: Mapping[str, GgufTensor],
    factors: tuple[float, ...] | None,
    token_ids: Mapping[str, int],
) -> ModelConfig:
    """ModelConfig from `llama.*`; what is missing gets the value llama.cpp gives it."""
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise CheckpointError(metadata.file, f"has the architecture {architecture!r}; only 'llama' is supported")
    _refuse_variants(metadata)
    embedding = tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(metadata.file, "missing or not a matrix", tensor="token_embd.weight")
    vocab_size = metadata.integer("llama.vocab_size", embedding.shape[0])
    hidden_size = metadata.integer("llama.embedding_length")
    num_heads = metadata.integer("llama.attention.head_count")
    if num_heads < 1:
        raise CheckpointError(metadata.file, f"metadata 'llama.attention.head_count' is {num_heads}")
    head_dim = metadata.integer("llama.attention.key_length", hidden_size // num_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.integer(key, head_dim) != head_dim:
            raise CheckpointError(metadata.file, f"metadata {key!r} differs from the head size {head_dim}")
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=metadata.integer("llama.feed_forward_length"),
        num_hidden_layers=metadata.integer("llama.block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=metadata.integer("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.number("llama.rope.freq_base", 10000.0),
        max_position_embeddings=metadata.integer("llama.context_length"),
        tie_word_embeddings=LM_HEAD not in tensors,
        rope_freq_factors=factors,
        bos_token_id=_optional_id(metadata, "tokenizer.ggml.bos_token_id"),
        eos_token_ids=_end_token_ids(metadata, token_ids),
    )


def _refuse_variants(metadata: _Metadata) -> None:
    """Files of the `llama` architecture that are not one whole model of the plain kind."""
    if metadata.text("general.type", "model") != "model":
        raise CheckpointError(metadata.file, f"is of the type {metadata.text('general.type')!r}, not a model")
    if metadata.integer("split.count", 0) > 1:
        raise CheckpointError(
            metadata.file, "is one part of a split model; join the parts with llama-gguf-split --merge"
        )
    if metadata.integer("llama.expert_count", 0) > 0:
        raise CheckpointError(metadata.file, "is a mixture of experts, which is not supported")
    if not metadata.truth("llama.attention.causal", True):
        raise CheckpointError(metadata.file, "has bidirectional attention, which is not supported")
    scaling = metadata.text("llama.rope.scaling.type", "none")
    factor = metadata.number("llama.rope.scaling.factor", metadata.number("llama.rope.scale_linear", 1.0))
    if scaling not in ("none", "linear") or factor not in (0.0, 1.0):
        raise CheckpointError(metadata.file, f"has RoPE scaling {scaling!r} by {factor:g}, which is not supported")


def _optional_id(metadata: _Metadata, key: str) -> int | None:
    # 2**32 - 1 is how a missing id is written.
    if key not in metadata or metadata.integer(key) == 0xFFFFFFFF:
        return None
    return metadata.integer(key)


def _end_token_ids(metadata: _Metadata, token_ids: Mapping[str, int]) -> tuple[int, ...]:
    stored = (_optional_id(metadata, f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    ids = [token_id for token_id in stored if token_id is not None]
    return tuple(dict.fromkeys((*ids, *end_token_ids(token_ids))))


def _read_tokenizer(
    metadata: _Metadata, config: ModelConfig, tokens: tuple[str, ...], token_ids: Mapping[str, int]
) -> tuple[TokenizerSpec, tuple[str, ...]]:
    """The tokenizer's facts; a file without any (tests, benchmarks) gives a spec with no tokens."""
    notices: tuple[str, ...] = ()
    kind = metadata.text("tokenizer.ggml.model", "gpt2")
    if kind != "gpt2":
        raise CheckpointError(
            metadata.file, f"has the tokenizer {kind!r}; only byte-level BPE ('gpt2') is supported, as Llama 3 has it"
        )
    if len(tokens) > config.vocab_size:
        raise CheckpointError(
            metadata.file, f"has {len(tokens)} tokens, but the vocabulary has {config.vocab_size} entries"
        )
    token_types = metadata.integers("tokenizer.ggml.token_type")
    if token_types and len(token_types) != len(tokens):
        raise CheckpointError(metadata.file, f"has {len(tokens)} tokens, but {len(token_types)} token types")
    if len(token_ids) != len(tokens):
        raise CheckpointError(metadata.file, "has two tokens of the same spelling in tokenizer.ggml.tokens")
    pre_tokenizer = metadata.text("tokenizer.ggml.pre", "")
    pre_tokenizer = _PRE_TOKENIZER_ALIASES.get(pre_tokenizer, pre_tokenizer)
    if tokens and pre_tokenizer in ("", "default"):
        pre_tokenizer = "llama-bpe" if is_llama3_vocabulary(token_ids) else "gpt-2"
        notices = (f"The file does not name its pre-tokenizer; {pre_tokenizer} is assumed.",)
    return (
        TokenizerSpec(
            pre_tokenizer=pre_tokenizer,
            tokens=tokens,
            token_types=token_types or (1,) * len(tokens),
            merges=metadata.strings("tokenizer.ggml.merges"),
            bos_token_id=config.bos_token_id,
            eos_token_ids=config.eos_token_ids,
            # llama.cpp's default: Llama 3 prompts begin with BOS, other byte-level vocabularies do not.
            add_bos_token=metadata.truth("tokenizer.ggml.add_bos_token", pre_tokenizer == "llama-bpe"),
            vocab_size=config.vocab_size,
            source=metadata.file,
        ),
        notices,
    )


def _num_values(tensor: GgufTensor) -> int:
    count = 1
    for dimension in tensor.shape:
        count *= dimension
    return count


def _quantization(metadata: _Metadata, tensors: Mapping[str, GgufTensor]) -> str:
    """The form most weights of the layers have, in llama.cpp's name of the mixture when the file's claim fits."""
    weights: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name not in (EMBEDDING, LM_HEAD):
            weights[tensor.qtype] += _num_values(tensor)
    most = weights.most_common(1)[0][0]
    claimed = _FILE_TYPES.get(metadata.integer("general.file_type", -1), "")
    return claimed if claimed.startswith(most) else most


def _conversion_notices(tensors: Mapping[str, GgufTensor]) -> tuple[str, ...]:
    foreign = Counter(tensor.qtype for tensor in tensors.values() if tensor.qtype not in NATIVE_QTYPES)
    return tuple(
        f"{count} tensors stored as {qtype} are converted to F32 when read, which costs memory and speed."
        for qtype, count in sorted(foreign.items())
    )


class _GgufTensors:
    """TensorSource over the mapped file."""

    def __init__(self, mapped: mmap.mmap, tensors: Mapping[str, GgufTensor], config: ModelConfig) -> None:
        self._mapped = mapped
        self._bytes: npt.NDArray[np.uint8] | None = np.frombuffer(mapped, dtype=np.uint8)
        self._tensors = tensors
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._num_heads = {
            "self_attn.q_proj.weight": config.num_attention_heads,
            "self_attn.k_proj.weight": config.num_key_value_heads,
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        stored = self._tensors[name]
        if self._bytes is None:
            raise CheckpointError(name, "was read after the checkpoint was closed")
        data = self._bytes[stored.offset : stored.offset + stored.num_bytes]
        qtype = stored.qtype
        if qtype not in NATIVE_QTYPES:
            data, qtype = dequantize_bytes(data, qtype, stored.shape).reshape(-1).view(np.uint8), "F32"
        num_heads = self._num_heads.get(name.split(".", 3)[-1])
        if num_heads is not None:
            data = _restore_row_order(data, num_heads, stored.shape[0])
        return Tensor(name, qtype, stored.shape, data)

    def release_pages(self) -> None:
        self._mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        # The mapping itself goes with its last view: tensors that were handed out stay valid.
        self._bytes = None


def _restore_row_order(data: npt.NDArray[np.uint8], num_heads: int, num_rows: int) -> npt.NDArray[np.uint8]:
    """Rows as Hugging Face has them: within a head, GGUF's order is 0, d/2, 1, d/2 + 1, ..."""
    pairs = data.reshape(num_heads, num_rows // num_heads // 2, 2, -1)  # (heads, head_dim / 2, 2, row bytes)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)
