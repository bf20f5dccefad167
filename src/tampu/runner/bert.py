"""The forward pass of a BERT encoder: token ids of many texts in, one vector for each out.

Matrix products run on the native kernels, whose rows do not depend on each other; everything else is NumPy on rows of
one text. A text's vector is therefore the same bits whatever it is computed together with. Refuses to know text.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tampu import _native
from tampu.core.errors import ConfigError
from tampu.model.bert import BertCheckpoint

Array = npt.NDArray[np.float32]

_ROWS = 128  # tokens that go through the feed-forward part together: their activations stay in the second-level cache
_BATCH_TOKENS = 2048  # tokens of one part of a batch: bounds memory


@dataclass(frozen=True, slots=True)
class _Linear:
    """y = x W^T + b on the native kernels, f32 weights and activations."""

    layer: _native.linear.Layer
    bias: Array  # (out_features,)

    def __call__(self, x: Array) -> Array:
        """(n, in_features) -> (n, out_features)."""
        y: Array = self.layer.forward(np.ascontiguousarray(x))
        y += self.bias
        return y


@dataclass(frozen=True, slots=True)
class _Norm:
    """Layer normalisation."""

    weight: Array  # (hidden_size,)
    bias: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        """(n, hidden_size), normalised in place."""
        x -= x.mean(axis=-1, keepdims=True)
        variance = np.square(x).mean(axis=-1, keepdims=True)
        x /= np.sqrt(variance + np.float32(self.eps))
        x *= self.weight
        x += self.bias
        return x


@dataclass(frozen=True, slots=True)
class _Layer:
    """One encoder layer."""

    qkv_proj: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    intermediate: _Linear
    output: _Linear
    output_norm: _Norm


class BertEncoder:
    """Weights in memory, ready to encode. `encode` may be called from one thread at a time."""

    def __init__(self, checkpoint: BertCheckpoint, *, num_threads: int | None = None, isa: str | None = None) -> None:
        """Read the weights; the checkpoint may be closed afterwards. `isa` as in CpuRunnerConfig."""
        isas = _native.linear.available_isas()
        if isa is not None and isa not in isas:
            raise ConfigError("isa", f"{isa!r} is not one of {', '.join(isas)}, which this machine has")
        self._isa = isa or isas[-1]
        self._config = checkpoint.config
        self._pooling = checkpoint.pooling
        self._num_threads = num_threads or min(8, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._num_threads, "tampu-embed")
        read = checkpoint.weight
        self._word_embeddings = read("embeddings.word_embeddings.weight")  # (vocab_size, hidden_size)
        # (max_position_embeddings, hidden_size); every token of a single text has type 0
        self._position_embeddings = read("embeddings.position_embeddings.weight")
        self._position_embeddings += read("embeddings.token_type_embeddings.weight")[0]
        self._norm = _read_norm(checkpoint, "embeddings.LayerNorm")
        self._layers = tuple(
            _read_layer(checkpoint, f"encoder.layer.{i}.", self._isa)
            for i in range(checkpoint.config.num_hidden_layers)
        )

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._config.hidden_size

    def encode(self, token_ids: Sequence[Sequence[int]]) -> Array:
        """One vector for each list of token ids (none empty, ids below vocab_size): (n, hidden_size)."""
        vectors = np.empty((len(token_ids), self.dimensions), dtype=np.float32)
        parts = _parts([len(ids) for ids in token_ids], self._num_threads)

        def encode_part(part: list[int]) -> None:
            vectors[part] = self._encode_part([token_ids[i] for i in part])

        for _ in self._pool.map(encode_part, parts):
            pass
        return vectors

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        self._pool.shutdown()

    def _encode_part(self, token_ids: list[Sequence[int]]) -> Array:
        bounds = np.cumsum([0, *(len(ids) for ids in token_ids)]).tolist()
        spans = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
        hidden = self._word_embeddings[np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids])]
        for span in spans:
            hidden[span] += self._position_embeddings[: span.stop - span.start]
        hidden = self._norm(hidden)  # (tokens of all texts, hidden_size)
        for layer in self._layers:
            attended = _attention(layer.qkv_proj(hidden), spans, self._config.num_attention_heads)
            hidden += layer.attention_output(attended)
            hidden = layer.attention_norm(hidden)
            for begin in range(0, len(hidden), _ROWS):
                rows = hidden[begin : begin + _ROWS]
                rows += layer.output(_activate(layer.intermediate(rows), self._config.hidden_act))
            hidden = layer.output_norm(hidden)
        return np.stack([self._pool_tokens(hidden[span]) for span in spans])

    def _pool_tokens(self, hidden: Array) -> Array:
        """(tokens of one text, hidden_size) -> (hidden_size,)."""
        vector: Array
        match self._pooling.mode:
            case "cls":
                vector = hidden[0].copy()
            case "max":
                vector = hidden.max(axis=0)
            case "mean_sqrt_len_tokens":
                vector = hidden.sum(axis=0) / np.float32(math.sqrt(len(hidden)))
            case _:
                vector = hidden.sum(axis=0) / np.float32(len(hidden))
        if self._pooling.is_normalized:
            vector /= np.maximum(np.sqrt(np.square(vector).sum()), np.float32(1e-12))
        return vector


def _parts(lengths: Sequence[int], num_threads: int) -> list[list[int]]:
    """Indices of texts, in parts of similar numbers of tokens, the same number of parts for each thread if possible."""
    total = sum(lengths)
    num_rounds = max(1, -(-total // (num_threads * _BATCH_TOKENS)))
    limit = max(64, -(-total // (num_threads * num_rounds)))
    parts: list[list[int]] = []
    num_tokens = 0
    for index, length in enumerate(lengths):
        if not parts or num_tokens + length > limit:
            parts.append([])
            num_tokens = 0
        parts[-1].append(index)
        num_tokens += length
    return parts


def _attention(qkv: Array, spans: Sequence[slice], num_heads: int) -> Array:
    """Every token attends to all tokens of its own text. (tokens, 3 * hidden_size) -> (tokens, hidden_size)."""
    hidden_size = qkv.shape[1] // 3
    head_dim = hidden_size // num_heads
    out = np.empty((len(qkv), hidden_size), dtype=np.float32)
    scale = np.float32(1 / math.sqrt(head_dim))
    for span in spans:
        # (3, num_heads, tokens of the text, head_dim)
        q, k, v = qkv[span].reshape(-1, 3, num_heads, head_dim).transpose(1, 2, 0, 3)
        scores = np.matmul(q, k.transpose(0, 2, 1))
        scores *= scale
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        out[span] = np.matmul(scores, v).transpose(1, 0, 2).reshape(-1, hidden_size)
    return out


def _activate(x: Array, name: str) -> Array:
    """The feed-forward part's activation, in place."""
    match name:
        case "relu":
            np.maximum(x, 0, out=x)
        case "gelu_new":
            inner = x * x * x
            inner *= np.float32(0.044715)
            inner += x
            inner *= np.float32(math.sqrt(2 / math.pi))
            np.tanh(inner, out=inner)
            inner += 1
            x *= inner
            x *= np.float32(0.5)
        case _:
            cdf = _erf(x * np.float32(math.sqrt(0.5)))
            cdf += 1
            x *= cdf
            x *= np.float32(0.5)
    return x


def _erf(x: Array) -> Array:
    """Error function, absolute error below 3e-7 (Abramowitz and Stegun, formula 7.1.26). `x` is overwritten."""
    magnitude = np.abs(x)
    t = magnitude * np.float32(0.3275911)
    t += 1
    np.reciprocal(t, out=t)
    y = t * np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y += np.float32(coefficient)
        y *= t
    magnitude *= -magnitude
    np.exp(magnitude, out=magnitude)
    y *= magnitude
    np.subtract(1, y, out=y)
    np.copysign(y, x, out=x)
    return x


def _read_norm(checkpoint: BertCheckpoint, name: str) -> _Norm:
    eps = checkpoint.config.layer_norm_eps
    return _Norm(checkpoint.weight(name + ".weight"), checkpoint.weight(name + ".bias"), eps)


def _read_linear(checkpoint: BertCheckpoint, names: Sequence[str], isa: str) -> _Linear:
    """Matrices with the same input, side by side."""
    weights = [checkpoint.weight(name + ".weight") for name in names]
    parts = [("F32", weight.tobytes(), weight.shape[0]) for weight in weights]
    bias = np.concatenate([checkpoint.weight(name + ".bias") for name in names])
    return _Linear(_native.linear.Layer(parts, weights[0].shape[1], isa, "f32"), bias)


def _read_layer(checkpoint: BertCheckpoint, prefix: str, isa: str) -> _Layer:
    own = prefix + "attention.self."
    return _Layer(
        qkv_proj=_read_linear(checkpoint, (own + "query", own + "key", own + "value"), isa),
        attention_output=_read_linear(checkpoint, (prefix + "attention.output.dense",), isa),
        attention_norm=_read_norm(checkpoint, prefix + "attention.output.LayerNorm"),
        intermediate=_read_linear(checkpoint, (prefix + "intermediate.dense",), isa),
        output=_read_linear(checkpoint, (prefix + "output.dense",), isa),
        output_norm=_read_norm(checkpoint, prefix + "output.LayerNorm"),
    )
