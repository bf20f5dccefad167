"""The extension module as Python sees it. Arrays are C-contiguous."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

def available_isas() -> list[str]:
    """Instruction sets this machine can run, slowest first."""

def kv_block_bytes(kv_cache_dtype: str, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int) -> int:
    """Bytes of one KV block over all layers."""

def sample(
    logits: npt.NDArray[np.float32],
    states: Sequence[SamplingState],
    positions: Sequence[int],
    masks: Sequence[bytes | bytearray | None],
    isa: str,
) -> list[SampledRow]:
    """Sample rows (n, vocab_size) with the kernels of one instruction set; `logits` is overwritten."""

# (token_id, None) or (token_id, (logprob, ((token_id, logprob), ...)))
SampledRow = tuple[int, tuple[float, tuple[tuple[int, float], ...]] | None]
# (token_ids, position of the first, block_table, state or None, what gives the allowed-token bits or None)
# The last is called once, on one of the model's threads; what it raises ends the step.
Run = tuple[Sequence[int], int, Sequence[int], SamplingState | None, Callable[[], bytes | bytearray | None] | None]

class SamplingState:
    """Sampling parameters of one request and how often each token occurred."""

    def __init__(
        self,
        *,
        vocab_size: int,
        num_prompt_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        seed: int,
        num_logprobs: int,
        logit_bias: list[tuple[int, float]],
    ) -> None:
        """Raises ValueError when a number is out of range."""

    def observe(self, token_ids: Sequence[int]) -> None:
        """The next tokens of the history, prompt first. Raises ValueError for an id outside the vocabulary."""

    @property
    def has_penalties(self) -> bool: ...
    @property
    def num_observed(self) -> int: ...

class Llama:
    """One model on the CPU. Every method raises ValueError, and changes nothing, when an input is out of range."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        rms_norm_eps: float,
        inv_freq: npt.NDArray[np.float32],
        tie_word_embeddings: bool,
        num_threads: int,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        isa: str,
        activations: str,
        kv_cache_dtype: str,
    ) -> None: ...
    def set_linear(
        self,
        slot: str,
        layer: int,
        tensors: Sequence[tuple[str, npt.NDArray[np.uint8], int]],
        in_features: int,
        fine_groups: bytes = b"",
    ) -> None:
        """Pack (qtype, bytes, rows) tensors, several side by side for a fused layer. Releases the interpreter.

        fine_groups: empty, or a byte for each group of 32 inputs; where it is not 0, int8 activations keep 16 bits.
        """

    def set_norm(self, norm: str, layer: int, values: npt.NDArray[np.float32]) -> None: ...
    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Scratch and KV memory; after the last weight. Raises MemoryError."""

    def execute(self, runs: Sequence[Run]) -> list[SampledRow]:
        """One step; a row for each run with a state, in order. Releases the interpreter."""

    def compute_logits(self, runs: Sequence[Run], out: npt.NDArray[np.float32]) -> None:
        """The forward pass of a step; logits of every token into `out`, (num_tokens, vocab_size)."""

    def fill_kv_cache(self, pattern: int) -> None:
        """Fill the KV memory with one 16-bit pattern, for tests."""

    @property
    def weight_bytes(self) -> int: ...
    @property
    def kv_cache_bytes(self) -> int: ...

class linear:  # noqa: N801 - a submodule
    """The linear-layer kernels by themselves."""

    class Layer:
        """One packed layer: (qtype, bytes, rows) matrices of width k side by side."""

        def __init__(
            self,
            parts: Sequence[tuple[str, bytes, int]],
            k: int,
            isa: str,
            activations: str,
            fine_groups: bytes = b"",
        ) -> None: ...
        def forward(self, x: npt.NDArray[np.float32], num_parts: int = 1) -> npt.NDArray[np.float32]:
            """(n, k) -> (n, out_features); a row's bits depend on that row alone. Releases the interpreter."""

    @staticmethod
    def available_isas() -> list[str]:
        """Instruction sets this machine can run, slowest first."""
