"""A runner without arithmetic whose answers still depend on every row of KV memory that a request may read.

Each KV row holds a hash of its whole history. A step checks that a request finds exactly its own history in the blocks
of its table, and the sampled token is computed from that history: whatever goes wrong with blocks (published too early,
shared across tenants, freed too early, written twice) fails a check or changes the tokens.
"""

from __future__ import annotations

import random
import zlib

from tampu.core.request import Request
from tampu.core.sampling_params import SamplingParams
from tampu.core.step import SampledToken, ScheduledRequest, SchedulerOutput, StepOutput

VOCAB_SIZE = 50
POISON = -1


def extend_history(history: list[int], request: Request, token_ids: list[int]) -> None:
    """Append the KV rows of the tokens beyond `len(history)`."""
    previous = history[-1] if history else zlib.crc32(repr((request.lora_id, request.tenant)).encode())
    for token_id in token_ids[len(history) :]:
        previous = hash((previous, token_id))
        history.append(previous)


def sample(request: Request, last_row: int, position: int) -> int:
    """The next token: a function of the history, the seed and the position."""
    return hash((last_row, request.seed, position)) % VOCAB_SIZE


def solo_tokens(request: Request, max_model_len: int) -> list[int]:
    """What the request must answer, worked out without engine, scheduler or blocks."""
    token_ids, history, output = list(request.prompt_token_ids), [], []
    params = request.sampling_params
    while True:
        extend_history(history, request, token_ids)
        token_id = sample(request, history[-1], len(token_ids))
        token_ids.append(token_id)
        output.append(token_id)
        if token_id in params.stop_token_ids or len(output) >= params.max_tokens or len(token_ids) >= max_model_len:
            return output


class SimulatedRunner:
    """Implements `ModelRunner`; `fail_at` names a step that raises."""

    def __init__(self, num_blocks: int, block_size: int, *, fail_at: int | None = None) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._memory = [[POISON] * block_size for _ in range(num_blocks)]
        self._histories: dict[str, list[int]] = {}
        self._fail_at = fail_at
        self.num_steps = 0
        self.max_step_tokens = 0
        self.is_closed = False

    def load(self) -> None:
        pass

    def num_blocks(self) -> int:
        return self._num_blocks

    def add_adapter(self, lora_id: str, path: str) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def execute(self, scheduler_output: SchedulerOutput) -> StepOutput:
        self.num_steps += 1
        if self.num_steps == self._fail_at:
            raise RuntimeError("the device fell over")
        self.max_step_tokens = max(self.max_step_tokens, scheduler_output.num_scheduled_tokens)
        for request_id in scheduler_output.finished_request_ids:
            self._histories.pop(request_id, None)
        for scheduled in scheduler_output.scheduled:
            self._write(scheduled)
        return StepOutput(tuple(t for s in scheduler_output.scheduled if (t := self._read(s)) is not None))

    def _write(self, scheduled: ScheduledRequest) -> None:
        history = self._histories.setdefault(scheduled.request.request_id, [])
        extend_history(history, scheduled.request, list(scheduled.token_ids))
        end = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens
        assert scheduled.num_scheduled_tokens > 0
        assert end <= len(scheduled.token_ids)
        for position in range(scheduled.num_computed_tokens, end):
            block, row = divmod(position, self._block_size)
            self._memory[scheduled.block_table[block]][row] = history[position]

    def _read(self, scheduled: ScheduledRequest) -> SampledToken | None:
        end = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens
        rows: list[int] = []
        for block_id in scheduled.block_table:
            rows += self._memory[block_id]
        request = scheduled.request
        assert rows[:end] == self._histories[request.request_id][:end], f"{request.request_id} reads foreign KV"
        assert scheduled.is_sampled == (end == len(scheduled.token_ids))
        if not scheduled.is_sampled:
            return None
        return SampledToken(request.request_id, sample(request, rows[end - 1], end))


def random_request(rng: random.Random, request_id: str, *, max_prompt: int, max_tokens: int) -> Request:
    """Prompts share beginnings often, adapters and tenants sometimes."""
    num_prompt = rng.randint(1, max_prompt)
    family = rng.randint(0, 2)
    shared = random.Random(family).choices(range(VOCAB_SIZE), k=max_prompt)
    num_shared = rng.choice((0, num_prompt // 2, num_prompt))
    prompt = shared[:num_shared] + rng.choices(range(VOCAB_SIZE), k=num_prompt - num_shared)
    return Request(
        request_id,
        tuple(prompt),
        SamplingParams(max_tokens=rng.randint(1, max_tokens), stop_token_ids=(7,) if rng.random() < 0.5 else ()),
        seed=rng.randrange(3),
        lora_id=rng.choice((None, None, "a", "b")),
        tenant=rng.choice(("", "", "x")),
    )
