"""The engine's thread: takes requests from any thread, runs steps on one, delivers what each step brought.

Promises: every request that `submit` accepted gets exactly one terminal output, whatever happens (finish, abort, drain,
failure, close). An abort takes effect before the next step. A failure is sticky: every waiter and every later submitter
gets it. An idle engine sleeps until it is called.

Refuses to know what a token means, how a runner computes, and who is listening.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from tampu.core.config import EngineConfig
from tampu.core.errors import (
    AdapterError,
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    RequestAbortedError,
    TampuError,
)
from tampu.core.output import FinishReason, RequestOutput
from tampu.core.request import Request
from tampu.core.stats import EngineHealth, EngineStats
from tampu.engine.runner_protocol import ModelRunner
from tampu.scheduler.scheduler import Scheduler

Deliver = Callable[[list[RequestOutput]], None]


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _AddAdapter:
    lora_id: str
    path: str
    done: Future[None] = field(default_factory=Future)


_Command = _Submit | _Abort | _AddAdapter


class Engine:
    """One loaded runner, one scheduler, one thread. All methods may be called from any thread.

    From `start` on the runner belongs to the engine's thread, which also closes it. `model_max_len` is the longest
    sequence the model allows, `vocab_size` the number of token ids it knows; None means that the caller answers for
    both. `preempt_every` is for tests, see `Scheduler`. Raises ConfigError when the KV cache cannot hold any request.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        model_max_len: int | None = None,
        *,
        vocab_size: int | None = None,
        preempt_every: int = 0,
    ) -> None:
        num_blocks = runner.num_blocks()
        limits = [num_blocks * config.block_size]
        limits += [limit for limit in (model_max_len, config.max_model_len) if limit is not None]
        if min(limits) < 2:
            raise ConfigError("kv_cache_bytes", f"{num_blocks} blocks of KV cache cannot hold a request: give it more")
        self._runner = runner
        self._config = config
        self._vocab_size = vocab_size
        self._deliver: Deliver = _discard
        self._thread: threading.Thread | None = None
        # The next four are touched by the engine's thread only, once it runs.
        self._scheduler = Scheduler(config, num_blocks, min(limits), preempt_every=preempt_every)
        self._undelivered: list[RequestOutput] = []
        self._num_aborts = 0
        self._runner_seconds = 0.0

        self._changed = threading.Condition()  # guards everything below
        self._inbox: list[_Command] = []
        self._num_queued = 0  # submitted, not running yet
        self._active: dict[str, None] = {}  # accepted, no terminal output delivered; in order of submission
        self._is_delivering = False
        self._lora_ids: set[str] = set()
        self._is_started = False
        self._is_draining = False
        self._is_closing = False
        self._failure: str | None = None
        self._stats = self._snapshot()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, deliver: Deliver) -> None:
        """Begin to serve. `deliver` is called on the engine's thread, at most once per step; it must neither block nor
        raise."""
        with self._changed:
            assert self._thread is None, "an engine starts once"
            assert not self._is_closing
            self._deliver = deliver
            self._is_started = True
            self._thread = threading.Thread(target=self._run, name="tampu-engine", daemon=True)
            self._thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what was accepted; after the time-out the rest ends with an error.

        True when everything finished by itself.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._is_draining = True
            while (self._active or self._is_delivering) and self._is_serving():
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    break
                self._changed.wait(remaining_s)
            is_drained = not self._active
        if not is_drained:
            self.close()
        return is_drained

    def close(self) -> None:
        """Stop now. Requests that are not finished end with RequestAbortedError. Idempotent."""
        with self._changed:
            if self._thread is None and not self._is_closing:
                self._runner.close()
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        """The longest sequence, prompt and output together, that can be served here, in tokens."""
        return self._scheduler.max_model_len

    def submit(self, request: Request) -> None:
        """Accept a request; its outputs go to `deliver`.

        Raises ContextLengthError when it could never run, InvalidRequestError for token ids that do not exist,
        AdapterError for an unknown adapter, OverloadedError when the queue is full or the engine is draining, and
        EngineDeadError after a failure or close.
        """
        with self._changed:
            self._refuse_if_down()
            self._validate(request)
            if self._num_queued >= self._config.max_num_waiting:
                raise OverloadedError(
                    f"{self._num_queued} requests are waiting, the limit is {self._config.max_num_waiting}: "
                    "try again later."
                )
            self._active[request.request_id] = None
            self._num_queued += 1
            self._send(_Submit(request))

    def abort(self, request_id: str) -> None:
        """End a request before the next step. Harmless when it is finished or unknown."""
        with self._changed:
            if request_id in self._active:
                self._send(_Abort(request_id))

    def add_adapter(self, lora_id: str, path: str) -> None:
        """Load an adapter between two steps and wait for it. Raises AdapterError, EngineDeadError."""
        command = _AddAdapter(lora_id, path)
        with self._changed:
            self._refuse_if_down()
            if lora_id in self._lora_ids:
                raise AdapterError(f"An adapter {lora_id!r} is loaded already.")
            self._send(command)
        command.done.result()

    # -- state --------------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """The snapshot taken after the last step."""
        with self._changed:
            return self._stats

    def health(self) -> EngineHealth:
        """Alive until it failed or was closed; ready while it accepts requests."""
        with self._changed:
            is_alive = self._failure is None and not self._is_closing
            return EngineHealth(is_alive, is_alive and self._is_started and not self._is_draining, self._failure)

    # -- callers' side, under the lock --------------------------------------------------------------------------------

    def _is_serving(self) -> bool:
        return self._is_started and self._failure is None and not self._is_closing

    def _refuse_if_down(self) -> None:
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        if self._is_closing or not self._is_started:
            raise EngineDeadError("The engine is not running.")
        if self._is_draining:
            raise OverloadedError("The server is shutting down and accepts no new requests.")

    def _validate(self, request: Request) -> None:
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens == 0:
            raise InvalidRequestError("prompt", "The prompt has no tokens.")
        if num_prompt_tokens + 1 > self.max_model_len:
            raise ContextLengthError(
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=request.sampling_params.max_tokens,
                max_model_len=self.max_model_len,
            )
        limit = self._vocab_size if self._vocab_size is not None else 2**31
        if min(request.prompt_token_ids) < 0 or max(request.prompt_token_ids) >= limit:
            raise InvalidRequestError("prompt", f"The prompt has a token id outside 0 to {limit - 1}.")
        if any(not 0 <= token_id < limit for token_id, _ in request.sampling_params.logit_bias):
            raise InvalidRequestError("logit_bias", f"logit_bias has a token id outside 0 to {limit - 1}.")
        if request.lora_id is not None and request.lora_id not in self._lora_ids:
            raise AdapterError(f"No adapter {request.lora_id!r} is loaded.")
        if request.request_id in self._active:
            raise InvalidRequestError("request_id", f"A request {request.request_id!r} is being served already.")

    def _send(self, command: _Command) -> None:
        self._inbox.append(command)
        self._changed.notify_all()

    # -- the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            self._fail(error)
        finally:
            self._leave()
            self._runner.close()

    def _step(self) -> bool:
        """Wait for work, obey commands, run one step, deliver. False when the engine is to stop."""
        scheduler = self._scheduler
        with self._changed:
            while not (self._inbox or scheduler.has_work or self._is_closing):
                self._changed.wait()
            commands, self._inbox = self._inbox, []
            is_closing = self._is_closing
        for command in commands:
            self._obey(command, is_closing=is_closing)
        if is_closing:
            scheduler.abort_all(RequestAbortedError("The server is shutting down."))
        scheduler_output = scheduler.schedule()
        if scheduler_output.scheduled:
            begin = time.perf_counter()
            step_output = self._runner.execute(scheduler_output)
            self._runner_seconds += time.perf_counter() - begin
            scheduler.update(scheduler_output, step_output)
        outputs = scheduler.take_outputs()
        assert outputs or scheduler_output.scheduled or commands or not scheduler.has_work, "the scheduler is stuck"
        self._hand_over(outputs)
        return not is_closing

    def _obey(self, command: _Command, *, is_closing: bool) -> None:
        match command:
            case _Submit(request):
                self._scheduler.add(request)
            case _Abort(request_id):
                self._num_aborts += self._scheduler.abort(request_id)
            case _AddAdapter(lora_id, path, done):
                if is_closing:
                    done.set_exception(EngineDeadError("The engine is not running."))
                    return
                try:
                    self._runner.add_adapter(lora_id, path)
                except TampuError as error:
                    done.set_exception(error)
                    return
                except BaseException as error:
                    done.set_exception(EngineDeadError(f"The engine failed: {error}"))
                    raise
                with self._changed:
                    self._lora_ids.add(lora_id)
                done.set_result(None)

    def _hand_over(self, outputs: list[RequestOutput]) -> None:
        """Publish the snapshot and deliver. A terminal output leaves `_active` first, so that its id may be reused at
        once, but stays in `_undelivered` in case that `deliver` fails."""
        self._undelivered = outputs
        snapshot = self._snapshot()
        with self._changed:
            self._stats = snapshot
            self._is_delivering = True
            self._num_queued = snapshot.num_waiting + sum(isinstance(command, _Submit) for command in self._inbox)
            for output in outputs:
                if output.finish_reason is not None:
                    del self._active[output.request_id]
        if outputs:
            self._deliver(outputs)
        self._undelivered = []
        with self._changed:
            self._is_delivering = False
            if not self._active:
                self._changed.notify_all()  # wakes drain

    def _snapshot(self) -> EngineStats:
        scheduler = self._scheduler
        pool = scheduler.pool
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            steps_total=scheduler.num_steps,
            prompt_tokens_total=scheduler.num_prompt_tokens,
            generated_tokens_total=scheduler.num_generated_tokens,
            prefix_cache_queries_total=scheduler.num_prefix_queries,
            prefix_cache_hits_total=scheduler.num_prefix_hits,
            preemptions_total=scheduler.num_preemptions,
            aborts_total=self._num_aborts,
            runner_seconds_total=self._runner_seconds,
        )

    def _fail(self, error: BaseException) -> None:
        """The end: tell every waiter, now and for ever after."""
        with self._changed:
            self._failure = f"The engine failed and must be restarted: {type(error).__name__}: {error}"
            terminal = {output.request_id for output in self._undelivered if output.finish_reason is not None}
            request_ids = [*terminal, *(request_id for request_id in self._active if request_id not in terminal)]
            self._active.clear()
        failure = EngineDeadError(self._failure)
        outputs = [RequestOutput(i, finish_reason=FinishReason.ERROR, error=failure) for i in request_ids]
        if outputs:
            try:
                self._deliver(outputs)
            except Exception:
                # The listener itself is broken; `health` tells whoever still asks.
                return

    def _leave(self) -> None:
        """Nothing is left behind: commands that arrived too late are answered."""
        with self._changed:
            self._is_closing = True
            late, self._inbox = self._inbox, []
            self._num_queued = 0
            self._changed.notify_all()
        for command in late:
            if isinstance(command, _AddAdapter):
                command.done.set_exception(EngineDeadError("The engine is not running."))


def _discard(outputs: list[RequestOutput]) -> None:
    """Before `start` there is nobody to deliver to, and nothing to deliver."""
