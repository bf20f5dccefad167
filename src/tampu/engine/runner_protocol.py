"""The device seam: what the engine asks of a runner. Five methods, token ids in, token ids out."""

from __future__ import annotations

from typing import Protocol

from tampu.core.step import SchedulerOutput, StepOutput


class ModelRunner(Protocol):
    """Executes steps on one device and owns its weights and KV memory. Used by one thread, the engine's.

    A runner never sees text. An exception from `execute` ends the engine (sticky failure), so a runner validates
    nothing that a user controls: that is done before.
    """

    def load(self) -> None:
        """Read the weights and allocate the KV cache. Raises CheckpointError or ConfigError."""

    def num_blocks(self) -> int:
        """KV blocks that exist after `load`."""

    def execute(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Forward pass and sampling of one step."""

    def add_adapter(self, lora_id: str, path: str) -> None:
        """Load an adapter under this id. Raises AdapterError."""

    def close(self) -> None:
        """Free everything. Idempotent."""
