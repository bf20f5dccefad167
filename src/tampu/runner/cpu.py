"""The native CPU runner: hands weights and steps to `tampu._native` and turns its answers into step values.

Decides sizes (threads, KV blocks) and remembers what sampling needs between steps; does no arithmetic and knows no
text, no scheduling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.errors import AdapterError, CheckpointError, ConfigError
from tampu.core.request import Request
from tampu.core.step import SampledToken, SchedulerOutput, StepOutput, TokenLogprobs
from tampu.model.rope import inv_freq
from tampu.runner.machine import available_memory_bytes, num_physical_cores

if TYPE_CHECKING:
    from tampu import _native
    from tampu.model.checkpoint import Checkpoint

MIB = 1 << 20
DEFAULT_KV_REQUESTS = 4  # requests of full length the default KV cache has room for
DEFAULT_KV_SHARE = 0.25  # of the memory that is available
DEFAULT_KV_LIMIT_BYTES = 4 << 30
RESERVED_BYTES = 256 * MIB  # left to the interpreter, the tokenizer and the HTTP server
NAN_PATTERN = 0x7FFF  # NaN as a half, and twice over as a float: a scale of the 8-bit cache

LOADING_ORDER = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
LAYER_WEIGHTS = {
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
# Of the LM head's groups of inputs, the share whose 8-bit activations keep a second level. The error of the head goes
# straight into the logits, and most of it comes from the few groups that the final norm scales up most.
FINE_SHARE_OF_HEAD = 0.25
GROUP_SIZE = 32
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")


class CpuRunner:
    """Runs steps on the machine's CPU. Owns the packed weights and the KV memory; used by one thread."""

    def __init__(
        self, checkpoint: Checkpoint, engine_config: EngineConfig, cpu_config: CpuRunnerConfig | None = None
    ) -> None:
        from tampu import _native

        self._checkpoint = checkpoint
        self._model_config = checkpoint.config
        self._engine_config = engine_config
        self._cpu_config = cpu_config if cpu_config is not None else CpuRunnerConfig()
        self._native = _native
        self._isa = _choose_isa(self._cpu_config.isa, _native.available_isas())
        self._num_threads = self._cpu_config.num_threads or num_physical_cores()
        self._num_blocks = 0
        self._llama: _native.Llama | None = None
        self._states: dict[str, _native.SamplingState] = {}

    def load(self) -> None:
        """Pack the weights and allocate the KV cache. Raises CheckpointError or ConfigError."""
        num_blocks = self._choose_num_blocks()
        config = self._model_config
        try:
            llama = self._native.Llama(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
                inv_freq=inv_freq(config),
                tie_word_embeddings=config.tie_word_embeddings,
                num_threads=self._num_threads,
                max_num_batched_tokens=self._engine_config.max_num_batched_tokens,
                max_num_seqs=self._engine_config.max_num_seqs,
                isa=self._isa,
                activations=self._cpu_config.activations,
                kv_cache_dtype=self._cpu_config.kv_cache_dtype,
            )
            self._load_weights(llama)
            llama.allocate(num_blocks, self._engine_config.block_size)
        except ValueError as error:
            raise CheckpointError(str(self._checkpoint.path), str(error)) from error
        except MemoryError as error:
            raise ConfigError("kv_cache_bytes", "the memory for weights and KV cache cannot be had") from error
        self._num_blocks = num_blocks
        self._llama = llama

    def num_blocks(self) -> int:
        """KV blocks that exist after `load`."""
        return self._num_blocks

    def execute(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Forward pass and sampling of one step."""
        states = self._states
        for request_id in scheduler_output.finished_request_ids:
            states.pop(request_id, None)
        runs = []
        sampled_ids = []
        for scheduled in scheduler_output.scheduled:
            begin = scheduled.num_computed_tokens
            token_ids = scheduled.token_ids[begin : begin + scheduled.num_scheduled_tokens]
            state = None
            if scheduled.is_sampled:
                request = scheduled.request
                sampled_ids.append(request.request_id)
                state = states.get(request.request_id)
                if state is None:
                    state = states[request.request_id] = self._new_state(request)
                if state.has_penalties:
                    state.observe(scheduled.token_ids[state.num_observed :])
            runs.append((token_ids, begin, scheduled.block_table, state, scheduled.next_mask))
        rows = self._loaded().execute(runs)
        return StepOutput(
            tuple(
                SampledToken(request_id, token_id, None if logprobs is None else TokenLogprobs(*logprobs))
                for request_id, (token_id, logprobs) in zip(sampled_ids, rows, strict=True)
            )
        )

    def add_adapter(self, lora_id: str, path: str) -> None:
        """Adapters are not supported by this runner yet: always raises AdapterError."""
        raise AdapterError(f"adapter {lora_id!r} ({path}): this runner does not apply adapters")

    def close(self) -> None:
        """Free everything. Idempotent."""
        self._llama = None
        self._states.clear()
        self._num_blocks = 0

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Teacher-forced logits of a whole sequence, (len(token_ids), vocab_size), for tests.

        Uses the first KV blocks: never call it while requests are running.
        """
        llama = self._loaded()
        out = np.empty((len(token_ids), self._model_config.vocab_size), dtype=np.float32)
        block_table = list(range(-(-len(token_ids) // self._engine_config.block_size)))
        step = self._engine_config.max_num_batched_tokens
        for begin in range(0, len(token_ids), step):
            chunk = list(token_ids[begin : begin + step])
            llama.compute_logits([(chunk, begin, block_table, None, None)], out[begin : begin + len(chunk)])
        return out

    def poison_kv_cache(self) -> None:
        """Fill the KV memory with NaN, for tests: a read of a slot that nobody wrote then shows."""
        self.fill_kv_cache(NAN_PATTERN)

    def fill_kv_cache(self, pattern: int) -> None:
        """Fill the KV memory with one 16-bit pattern: a benchmark's context that need not be computed."""
        self._loaded().fill_kv_cache(pattern)

    @property
    def isa(self) -> str:
        """The instruction set in use, one of core.config.ISAS."""
        return self._isa

    @property
    def num_threads(self) -> int:
        """Compute threads, the caller's included."""
        return self._num_threads

    @property
    def activations(self) -> str:
        """int8 or f32."""
        return self._cpu_config.activations

    @property
    def kv_cache_dtype(self) -> str:
        """f16 or q8."""
        return self._cpu_config.kv_cache_dtype

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the KV cache after `load`."""
        return self._num_blocks * self._block_bytes()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights after `load`."""
        return self._llama.weight_bytes if self._llama is not None else 0

    def _loaded(self) -> _native.Llama:
        assert self._llama is not None, "load() first"
        return self._llama

    def _new_state(self, request: Request) -> _native.SamplingState:
        params = request.sampling_params
        return self._native.SamplingState(
            vocab_size=self._model_config.vocab_size,
            num_prompt_tokens=len(request.prompt_token_ids),
            temperature=params.temperature,
            top_k=min(params.top_k, self._model_config.vocab_size),
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            seed=request.seed,
            num_logprobs=-1 if params.num_logprobs is None else params.num_logprobs,
            logit_bias=list(params.logit_bias),
        )

    def _load_weights(self, llama: _native.Llama) -> None:
        config, checkpoint = self._model_config, self._checkpoint

        final_norm = checkpoint.dequantize("model.norm.weight")

        def pack(slot: str, layer: int, names: Sequence[str]) -> None:
            tensors = [checkpoint.tensor(name) for name in names]
            parts = [(t.qtype, t.data, t.shape[0]) for t in tensors]
            fine_groups = fine_groups_of_head(final_norm) if slot == "lm_head" else b""
            llama.set_linear(slot, layer, parts, tensors[0].shape[1], fine_groups)

        def load_layer(layer: int) -> None:
            prefix = f"model.layers.{layer}."
            for slot in LOADING_ORDER:
                pack(slot, layer, [f"{prefix}{name}.weight" for name in LAYER_WEIGHTS[slot]])
            for norm in LAYER_NORMS:
                llama.set_norm(norm, layer, checkpoint.dequantize(f"{prefix}{norm}.weight"))

        # Packing releases the interpreter, so layers are packed side by side.
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="tampu-pack") as pool:
            head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
            jobs = [pool.submit(pack, "lm_head", 0, [head])]
            if not config.tie_word_embeddings:
                jobs.append(pool.submit(pack, "embed_tokens", 0, ["model.embed_tokens.weight"]))
            jobs.extend(pool.submit(load_layer, layer) for layer in range(config.num_hidden_layers))
            for job in jobs:
                job.result()
        llama.set_norm("norm", 0, final_norm)
        checkpoint.release_pages()  # the weights are held once, packed

    def _block_bytes(self) -> int:
        config = self._model_config
        return self._native.kv_block_bytes(
            self._cpu_config.kv_cache_dtype,
            num_layers=config.num_hidden_layers,
            block_size=self._engine_config.block_size,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        )

    def _choose_num_blocks(self) -> int:
        """KV blocks that fit beside the weights. Raises CheckpointError or ConfigError when they do not."""
        engine, block_bytes = self._engine_config, self._block_bytes()
        available = available_memory_bytes()
        for_weights = self._checkpoint.file_bytes + RESERVED_BYTES
        if for_weights + block_bytes > available:
            raise CheckpointError(
                str(self._checkpoint.path),
                f"needs about {for_weights // MIB} MiB of memory, {available // MIB} MiB are available",
            )
        if engine.kv_cache_bytes is None:
            return default_num_blocks(
                engine, self._model_config.max_position_embeddings, block_bytes, available - for_weights
            )
        if engine.kv_cache_bytes < block_bytes:
            raise ConfigError(
                "kv_cache_bytes", f"{engine.kv_cache_bytes} bytes hold no block of this model; one takes {block_bytes}"
            )
        if engine.kv_cache_bytes > available - for_weights:
            raise ConfigError(
                "kv_cache_bytes",
                f"{engine.kv_cache_bytes // MIB} MiB do not fit: {available // MIB} MiB are available and the model "
                f"needs about {for_weights // MIB} MiB",
            )
        return engine.kv_cache_bytes // block_bytes


def default_num_blocks(engine: EngineConfig, model_max_len: int, block_bytes: int, free_bytes: int) -> int:
    """KV blocks when nobody named a budget, at least one; `free_bytes` is what is left beside the weights.

    Room for a few requests of full length, within a share of the free memory. A length asked for by name goes beyond
    the share when one request of it fits the machine.
    """
    longest = min(model_max_len, engine.max_model_len or model_max_len)
    for_one = -(-longest // engine.block_size) * block_bytes
    budget = min(DEFAULT_KV_REQUESTS * for_one, int(DEFAULT_KV_SHARE * free_bytes), DEFAULT_KV_LIMIT_BYTES)
    if engine.max_model_len is not None and for_one <= free_bytes:
        budget = max(budget, for_one)
    return max(1, budget // block_bytes)


def _choose_isa(wanted: str | None, available: Sequence[str]) -> str:
    if wanted is None:
        return available[-1]
    if wanted not in available:
        raise ConfigError("isa", f"this machine cannot run {wanted}; it can run {', '.join(available)}")
    return wanted


def fine_groups_of_head(final_norm: npt.NDArray[np.float32]) -> bytes:
    """A byte for each group of the LM head's inputs: 1 where activations keep 16 bits, chosen by the norm's weight.

    Empty where hidden_size is not whole groups: such a head has no 8-bit activations.
    """
    if final_norm.size % GROUP_SIZE:
        return b""
    largest = np.abs(final_norm).reshape(-1, GROUP_SIZE).max(axis=1)
    chosen = np.argsort(-largest, kind="stable")[: math.ceil(FINE_SHARE_OF_HEAD * largest.size)]
    flags = np.zeros(largest.size, dtype=np.uint8)
    flags[chosen] = 1
    return flags.tobytes()
