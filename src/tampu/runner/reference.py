"""The forward pass of a Llama in plain NumPy, one token at a time: slow, obvious, and what fast runners are held to.

float32 arithmetic on the dequantised weights; keys and values are rounded to float16 or to scaled bytes when they are
cached, as every runner does. A token's result depends on the tokens before it and on nothing else, because `execute`
never computes two of them together. Refuses to know text, scheduling and speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tampu.core.config import EngineConfig
from tampu.core.errors import AdapterError, ConfigError
from tampu.core.step import SampledToken, ScheduledRequest, SchedulerOutput, StepOutput
from tampu.model.checkpoint import Checkpoint
from tampu.model.config import ModelConfig
from tampu.model.llama_tensors import EMBEDDING, FINAL_NORM, LM_HEAD
from tampu.model.rope import inv_freq, rope_cos_sin
from tampu.sampling.sampler import sample_row

Array = npt.NDArray[np.float32]

_DEFAULT_KV_TOKENS = 8192
_ATTENTION_ROWS = 256  # rows of scores held at once by `logits`


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer, (out_features, in_features)."""

    input_layernorm: Array
    q_proj: Array
    k_proj: Array
    v_proj: Array
    o_proj: Array
    post_attention_layernorm: Array
    gate_proj: Array
    up_proj: Array
    down_proj: Array


@dataclass(frozen=True, slots=True)
class _Weights:
    embed_tokens: Array  # (vocab_size, hidden_size)
    layers: tuple[_Layer, ...]
    norm: Array
    lm_head: Array  # (vocab_size, hidden_size); embed_tokens itself when tied


class ReferenceRunner:
    """ModelRunner in NumPy. `kv_cache_dtype` is "f16", "q8", or "f32" to compare with runners that do not round."""

    def __init__(self, checkpoint: Checkpoint, engine_config: EngineConfig, *, kv_cache_dtype: str = "f16") -> None:
        if kv_cache_dtype not in ("f16", "q8", "f32"):
            raise ConfigError("kv_cache_dtype", f"{kv_cache_dtype!r} is not one of f16, q8, f32")
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._engine_config = engine_config
        self._is_q8 = kv_cache_dtype == "q8"
        self._kv_dtype = np.dtype(np.float16 if kv_cache_dtype == "f16" else np.float32)  # q8: bytes times scales
        self._inv_freq = inv_freq(self._config)
        self._weights: _Weights | None = None
        # (layers, 2 = keys and values, blocks, block_size, kv_heads, head_dim)
        self._kv_cache: npt.NDArray[np.floating] = np.empty((0, 2, 0, 0, 0, 0), dtype=self._kv_dtype)

    def load(self) -> None:
        """Dequantise all weights and allocate the KV cache, filled with NaN so that a stray read is loud."""
        config, block_size = self._config, self._engine_config.block_size
        row_values = config.num_key_value_heads * config.head_dim
        block_bytes = config.num_hidden_layers * 2 * block_size * row_values * self._kv_dtype.itemsize
        kv_cache_bytes = self._engine_config.kv_cache_bytes
        num_blocks = _DEFAULT_KV_TOKENS // block_size if kv_cache_bytes is None else kv_cache_bytes // block_bytes
        if num_blocks < 1:
            raise ConfigError(
                "kv_cache_bytes", f"{kv_cache_bytes} bytes hold no block of this model; one takes {block_bytes}"
            )
        self._weights = _load_weights(self._checkpoint)
        shape = (config.num_hidden_layers, 2, num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        self._kv_cache = np.full(shape, np.nan, dtype=self._kv_dtype)

    def num_blocks(self) -> int:
        """KV blocks that exist after `load`."""
        return int(self._kv_cache.shape[2])

    def add_adapter(self, lora_id: str, path: str) -> None:
        """Adapters are not part of the reference. Raises AdapterError."""
        raise AdapterError(f"the reference runner has no adapters, {lora_id!r} cannot be loaded")

    def close(self) -> None:
        """Drop weights and cache. Idempotent."""
        self._weights = None
        self._kv_cache = np.empty((0, 2, 0, 0, 0, 0), dtype=self._kv_dtype)

    def execute(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Compute every scheduled token in order and sample where asked to."""
        sampled = []
        # A broken model overflows into NaN, which sampling reports for the row: not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            for scheduled in scheduler_output.scheduled:
                hidden = self._compute(scheduled)
                if scheduled.is_sampled:
                    sampled.append(self._sample(scheduled, hidden))
        return StepOutput(tuple(sampled))

    def logits(self, token_ids: Sequence[int]) -> Array:
        """Logits after every token of one sequence, (len(token_ids), vocab_size), computed together with BLAS.

        For comparisons with a tolerance; the cache is not touched.
        """
        weights, config = self._loaded(), self._config
        cos, sin = rope_cos_sin(self._inv_freq, np.arange(len(token_ids)))
        hidden = weights.embed_tokens[np.asarray(token_ids)]  # (n, hidden_size)
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in weights.layers:
                normed = _rms_norm(hidden, layer.input_layernorm, config.rms_norm_eps)
                q, k, v = (normed @ w.T for w in (layer.q_proj, layer.k_proj, layer.v_proj))
                attended = _causal_attention(
                    self._query(_rotate(_split_heads(q, config), cos, sin)),
                    self._cached_key(_rotate(_split_heads(k, config), cos, sin)),
                    self._cached_value(_split_heads(v, config)),
                )
                hidden = hidden + attended @ layer.o_proj.T
                normed = _rms_norm(hidden, layer.post_attention_layernorm, config.rms_norm_eps)
                hidden = hidden + (_silu(normed @ layer.gate_proj.T) * (normed @ layer.up_proj.T)) @ layer.down_proj.T
            return _rms_norm(hidden, weights.norm, config.rms_norm_eps) @ weights.lm_head.T

    def _loaded(self) -> _Weights:
        assert self._weights is not None, "load() comes first"
        return self._weights

    def _cached_key(self, key: Array) -> Array:
        """What the cache gives back for a rotary-embedded key, (..., head_dim)."""
        return _quantized(_spread(key)) if self._is_q8 else key.astype(self._kv_dtype).astype(np.float32)

    def _cached_value(self, value: Array) -> Array:
        return _quantized(value) if self._is_q8 else value.astype(self._kv_dtype).astype(np.float32)

    def _query(self, query: Array) -> Array:
        """A query as it meets the keys: with the 8-bit cache, in their basis and in bytes as well."""
        return _quantized(_spread(query)) if self._is_q8 else query

    def _compute(self, scheduled: ScheduledRequest) -> Array:
        """Final hidden state (hidden_size,) of the last scheduled token; keys and values of all of them are cached."""
        begin = scheduled.num_computed_tokens
        hidden = np.empty(0, dtype=np.float32)
        for position in range(begin, begin + scheduled.num_scheduled_tokens):
            hidden = self._forward(scheduled.token_ids[position], position, scheduled.block_table)
        return hidden

    def _forward(self, token_id: int, position: int, block_table: Sequence[int]) -> Array:
        """One token through all layers, (hidden_size,)."""
        weights, config = self._loaded(), self._config
        cos, sin = rope_cos_sin(self._inv_freq, np.array([position]))
        hidden = weights.embed_tokens[token_id]
        block_size = self._engine_config.block_size
        block, row = block_table[position // block_size], position % block_size
        blocks = np.asarray(block_table[: position // block_size + 1])
        for layer, kv_cache in zip(weights.layers, self._kv_cache, strict=True):
            normed = _rms_norm(hidden, layer.input_layernorm, config.rms_norm_eps)
            q, k, v = (_split_heads((w @ normed)[None], config) for w in (layer.q_proj, layer.k_proj, layer.v_proj))
            kv_cache[0, block, row] = self._cached_key(_rotate(k, cos, sin)[0])
            kv_cache[1, block, row] = self._cached_value(v[0])
            context = kv_cache[:, blocks].reshape(2, -1, *kv_cache.shape[3:])[:, : position + 1].astype(np.float32)
            query = self._query(_rotate(q, cos, sin)[0])
            hidden = hidden + layer.o_proj @ _attend(query, context[0], context[1])
            normed = _rms_norm(hidden, layer.post_attention_layernorm, config.rms_norm_eps)
            hidden = hidden + layer.down_proj @ (_silu(layer.gate_proj @ normed) * (layer.up_proj @ normed))
        return _rms_norm(hidden, weights.norm, config.rms_norm_eps)

    def _sample(self, scheduled: ScheduledRequest, hidden: Array) -> SampledToken:
        request = scheduled.request
        num_prompt_tokens = len(request.prompt_token_ids)
        position = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens
        token_id, logprobs = sample_row(
            self._loaded().lm_head @ hidden,
            request.sampling_params,
            request.prompt_token_ids,
            list(scheduled.token_ids[num_prompt_tokens:position]),
            None if scheduled.next_mask is None else scheduled.next_mask(),
            request.seed,
            position,
        )
        return SampledToken(request.request_id, token_id, logprobs)


def _load_weights(checkpoint: Checkpoint) -> _Weights:
    names = {
        "input_layernorm": "input_layernorm.weight",
        "post_attention_layernorm": "post_attention_layernorm.weight",
        **{f"{x}_proj": f"self_attn.{x}_proj.weight" for x in ("q", "k", "v", "o")},
        **{f"{x}_proj": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    }
    embed_tokens = checkpoint.dequantize(EMBEDDING)
    return _Weights(
        embed_tokens=embed_tokens,
        layers=tuple(
            _Layer(**{field: checkpoint.dequantize(f"model.layers.{index}.{name}") for field, name in names.items()})
            for index in range(checkpoint.config.num_hidden_layers)
        ),
        norm=checkpoint.dequantize(FINAL_NORM),
        lm_head=embed_tokens if checkpoint.config.tie_word_embeddings else checkpoint.dequantize(LM_HEAD),
    )


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight)


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def _split_heads(x: Array, config: ModelConfig) -> Array:
    return x.reshape(x.shape[0], -1, config.head_dim)  # (n, heads, head_dim)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of (n, heads, head_dim) by (n, head_dim / 2): halves of a head are the two coordinates."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _spread(x: Array) -> Array:
    """A Hadamard rotation of each run of 2^k elements of (..., head_dim), 2^k the largest that divides head_dim.

    It leaves dot products as they are, and no channel of a key much larger than the others.
    """
    size = x.shape[-1] & -x.shape[-1]
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    runs = x.reshape(*x.shape[:-1], -1, size, 1)
    return np.asarray((runs * matrix).sum(axis=-2) / np.float32(np.sqrt(size))).reshape(x.shape)


def _quantized(x: Array) -> Array:
    """(..., head_dim) rounded to whole multiples, -127 to 127, of a scale of its own."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.asarray(np.rint(x / np.where(scale == 0, np.float32(1), scale)) * scale)


def _attend(q: Array, keys: Array, values: Array) -> Array:
    """Attention of one token. q is (heads, head_dim), keys and values (n, kv_heads, head_dim); (hidden,) comes back.

    Sums are NumPy's own, not BLAS: their order depends on n alone.
    """
    num_kv_heads, head_dim = keys.shape[1:]
    grouped = q.reshape(num_kv_heads, -1, head_dim)  # query heads beside the kv head they share
    scores = (keys[:, :, None] * grouped).sum(axis=-1) / np.float32(np.sqrt(head_dim))  # (n, kv_heads, group)
    weights = np.exp(scores - scores.max(axis=0))
    mixed = (weights[..., None] * values[:, :, None]).sum(axis=0)  # (kv_heads, group, head_dim)
    return np.asarray(mixed / weights.sum(axis=0)[..., None]).reshape(-1)


def _causal_attention(q: Array, keys: Array, values: Array) -> Array:
    """Attention of a whole sequence: (n, heads, head_dim) and (n, kv_heads, head_dim) to (n, heads * head_dim)."""
    num_tokens, num_heads, head_dim = q.shape
    group = num_heads // keys.shape[1]
    mixed = np.empty_like(q)
    for begin in range(0, num_tokens, _ATTENTION_ROWS):
        end = min(begin + _ATTENTION_ROWS, num_tokens)
        is_future = np.arange(end) > np.arange(begin, end)[:, None]  # (rows, end)
        for head in range(num_heads):
            scores = q[begin:end, head] @ keys[:end, head // group].T / np.float32(np.sqrt(head_dim))
            scores[is_future] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[begin:end, head] = weights @ values[:end, head // group] / weights.sum(axis=-1, keepdims=True)
    return mixed.reshape(num_tokens, -1)
