"""Texts to vectors, off the event loop: one worker thread, a bounded queue, requests of many callers in one batch.

Knows neither how text becomes tokens nor how tokens become vectors; both are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tampu.core.errors import EngineDeadError, InvalidRequestError, OverloadedError
from tampu.serving.embedder import EmbeddingCard, Embeddings

_MAX_BATCH_TEXTS = 256  # of small requests that are served together; a larger one is served alone


class TextEncoder(Protocol):
    """The vectors' side."""

    def encode(self, token_ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]: ...

    def close(self) -> None: ...


class EmbeddingTokenizer(Protocol):
    """The text's side."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class _Job:
    texts: tuple[str, ...]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Embeddings]


class EmbeddingService:
    """The embedding service of one model. `embed` may be called from any event loop; `close` from any thread."""

    def __init__(
        self,
        card: EmbeddingCard,
        tokenizer: EmbeddingTokenizer,
        encoder: TextEncoder,
        *,
        max_waiting: int = 256,
        max_texts: int = 2048,
    ) -> None:
        self.card = card
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._max_texts = max_texts
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tampu-embeddings", daemon=True)
        self._thread.start()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Vectors of some texts; a text that is too long is cut, as sentence-transformers does.

        Raises InvalidRequestError for no or too many texts, OverloadedError when too many callers wait, and
        EngineDeadError after `close`.
        """
        if not texts:
            raise InvalidRequestError("input", "input holds no texts.")
        if len(texts) > self._max_texts:
            raise InvalidRequestError(
                "input", f"input holds {len(texts)} texts; at most {self._max_texts} are embedded in one request."
            )
        if self._closing.is_set():
            raise EngineDeadError("The embedding service is closed.")
        loop = asyncio.get_running_loop()
        job = _Job(tuple(texts), loop, loop.create_future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise OverloadedError(f"{self._jobs.maxsize} embedding requests are waiting: try again later.") from None
        if self._closing.is_set():
            self._refuse_waiting()  # close() may have looked before this job was there
        return await job.done

    def close(self) -> None:
        """Finish the batch under way, refuse what waits, stop the thread. Idempotent."""
        self._closing.set()
        self._refuse_waiting()
        with contextlib.suppress(queue.Full):  # then the thread is awake
            self._jobs.put_nowait(None)
        self._thread.join()
        self._refuse_waiting()
        self._encoder.close()

    # -- the worker's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            job = self._jobs.get()
            if job is None:
                return
            self._serve(self._with_others(job))

    def _with_others(self, job: _Job) -> list[_Job]:
        """More jobs that wait already, as long as they are small together: a text's vector does not depend on it."""
        batch, num_texts = [job], len(job.texts)
        while num_texts < _MAX_BATCH_TEXTS:
            try:
                other = self._jobs.get_nowait()
            except queue.Empty:
                break
            if other is None:
                self._closing.set()
                break
            batch.append(other)
            num_texts += len(other.texts)
        return batch

    def _serve(self, batch: list[_Job]) -> None:
        jobs = [job for job in batch if not job.done.cancelled()]
        if not jobs:
            return
        try:
            token_ids = self._tokenizer.encode([text for job in jobs for text in job.texts])
            vectors = self._encoder.encode(token_ids)
        except Exception as error:
            if len(jobs) == 1:
                _settle(jobs[0], EngineDeadError(f"The embedding model failed: {type(error).__name__}: {error}"))
                return
            for job in jobs:  # whose fault it is shows when they are served alone
                self._serve([job])
            return
        begin = 0
        for job in jobs:
            end = begin + len(job.texts)
            num_tokens = sum(len(ids) for ids in token_ids[begin:end])
            rows = tuple(vector.astype("<f4").tobytes() for vector in vectors[begin:end])
            _settle(job, Embeddings(rows, num_tokens))
            begin = end

    def _refuse_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                _settle(job, EngineDeadError("The embedding service is closed."))


def _settle(job: _Job, outcome: Embeddings | EngineDeadError) -> None:
    """Hand the outcome to the caller's event loop, if it is still there."""

    def set_outcome() -> None:
        if job.done.cancelled():
            return
        if isinstance(outcome, Embeddings):
            job.done.set_result(outcome)
        else:
            job.done.set_exception(outcome)

    try:
        job.loop.call_soon_threadsafe(set_outcome)
    except RuntimeError:
        return  # the loop is closed: nobody waits
