"""A snapshot of the engine for metrics and health. Counters only grow; gauges are values of the moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One consistent snapshot, taken between two steps."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # cached but unreferenced blocks count as free
    num_cached_blocks: int = 0
    steps_total: int = 0
    prompt_tokens_total: int = 0  # computed or taken from the cache
    generated_tokens_total: int = 0
    prefix_cache_queries_total: int = 0  # tokens looked up
    prefix_cache_hits_total: int = 0  # tokens found
    preemptions_total: int = 0
    aborts_total: int = 0
    runner_seconds_total: float = 0.0  # wall time inside runner.execute


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """`is_alive` is False for ever once the engine failed; `failure` says why."""

    is_alive: bool
    is_ready: bool
    failure: str | None = None
