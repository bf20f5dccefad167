"""Settings of the engine, stated once. Derived values (block count, real context) belong to whoever learns them."""

from __future__ import annotations

from dataclasses import dataclass

from tampu.core.errors import ConfigError

MAX_NUM_SEQS = 65535  # the native model's limit
DEFAULT_NUM_BATCHED_TOKENS = 512
MAX_NUM_BATCHED_TOKENS = 1 << 20  # far beyond any gain, and each costs scratch memory


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Budgets of the scheduler and the KV cache."""

    max_num_seqs: int = 64  # requests in one step
    max_num_batched_tokens: int = DEFAULT_NUM_BATCHED_TOKENS  # tokens in one step, prefill chunks and decodes together
    max_num_waiting: int = 1024  # more than this is refused as overload
    max_model_len: int | None = None  # None = what the model and the KV cache allow
    block_size: int = 16  # tokens per KV block
    kv_cache_bytes: int | None = None  # None = the runner chooses from free memory
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for setting, most in (
            ("max_num_seqs", MAX_NUM_SEQS),
            ("max_num_batched_tokens", MAX_NUM_BATCHED_TOKENS),
            ("max_num_waiting", None),
        ):
            value = getattr(self, setting)
            if value < 1:
                raise ConfigError(setting, f"{value} is not at least 1")
            if most is not None and value > most:
                raise ConfigError(setting, f"{value} is more than {most}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens} do not hold max_num_seqs ({self.max_num_seqs}), a full batch",
            )
        if self.block_size not in (16, 32, 64):
            raise ConfigError("block_size", "must be 16, 32 or 64")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError("max_model_len", "must be at least 2")
        if self.kv_cache_bytes is not None and self.kv_cache_bytes < 1:
            raise ConfigError("kv_cache_bytes", "must be at least 1")


# Instruction sets with kernels of their own: dotprod is ARM64's, the last three are x86's.
ISAS = ("portable", "dotprod", "avx2", "avxvnni", "avx512")
MAX_NUM_THREADS = 1024  # what the native model can be made with


@dataclass(frozen=True, slots=True)
class CpuRunnerConfig:
    """Settings of the native runner."""

    num_threads: int | None = None  # None = one per physical core
    isa: str | None = None  # one of ISAS; None = the best the machine has
    activations: str = "int8"  # "int8" | "f32"
    kv_cache_dtype: str = "f16"  # "f16" | "q8" (8 bits with a scale for each token and head)

    def __post_init__(self) -> None:
        if self.num_threads is not None and not 1 <= self.num_threads <= MAX_NUM_THREADS:
            raise ConfigError("num_threads", f"{self.num_threads} is not between 1 and {MAX_NUM_THREADS}")
        if self.isa is not None and self.isa not in ISAS:
            raise ConfigError("isa", f"{self.isa!r} is not one of {', '.join(ISAS)}")
        if self.activations not in ("int8", "f32"):
            raise ConfigError("activations", f"{self.activations!r} is not one of int8, f32")
        if self.kv_cache_dtype not in ("f16", "q8"):
            raise ConfigError("kv_cache_dtype", f"{self.kv_cache_dtype!r} is not one of f16, q8")
