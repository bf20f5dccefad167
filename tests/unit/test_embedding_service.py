"""The embedding service on a fake encoder: order, batching, errors, overload, cancellation, close."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from tampu.core.errors import EngineDeadError, InvalidRequestError, OverloadedError
from tampu.serving.embedder import EmbeddingCard, Embeddings
from tampu.serving.embeddings import EmbeddingService

WAIT_S = 20.0
CARD = EmbeddingCard(weights_name="fake", dimensions=2, max_tokens=512)


def as_lists(result: Embeddings) -> list[list[float]]:
    return [np.frombuffer(vector, "<f4").tolist() for vector in result.vectors]


class LengthTokenizer:
    """One token for each character; "bad" cannot be tokenised."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if "bad" in texts:
            raise ValueError("bad text")
        return [[ord(c) for c in text] for text in texts]


class SumEncoder:
    """A vector is (sum of ids, number of ids). Waits at the gate."""

    dimensions = 2

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.is_closed = False

    def encode(self, token_ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        self.batches.append(len(token_ids))
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        return np.array([(sum(ids), len(ids)) for ids in token_ids], dtype=np.float32)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def encoder() -> SumEncoder:
    return SumEncoder()


@pytest.fixture
async def service(encoder: SumEncoder) -> AsyncIterator[EmbeddingService]:
    service = EmbeddingService(CARD, LengthTokenizer(), encoder, max_waiting=4, max_texts=10)
    yield service
    encoder.gate.set()
    await asyncio.to_thread(service.close)
    assert encoder.is_closed


async def hold(service: EmbeddingService, encoder: SumEncoder) -> asyncio.Task[object]:
    """Occupy the worker until the gate opens."""
    encoder.gate.clear()
    encoder.entered.clear()
    task: asyncio.Task[object] = asyncio.create_task(service.embed(["holding"]))
    assert await asyncio.to_thread(encoder.entered.wait, WAIT_S)
    return task


async def test_vectors_in_order_with_their_token_count(service: EmbeddingService) -> None:
    result = await service.embed(["ab", "", "c"])
    assert as_lists(result) == [[195.0, 2.0], [0.0, 0.0], [99.0, 1.0]]
    assert result.prompt_tokens == 3


async def test_waiting_requests_are_served_in_one_batch_each_with_its_own(
    service: EmbeddingService, encoder: SumEncoder
) -> None:
    holding = await hold(service, encoder)
    tasks = [asyncio.create_task(service.embed([text, text])) for text in ("a", "bb", "ccc")]
    await asyncio.sleep(0)
    encoder.gate.set()
    results = await asyncio.gather(*tasks)
    await holding
    assert [as_lists(r) for r in results] == [[[97, 1]] * 2, [[196, 2]] * 2, [[297, 3]] * 2]
    assert [r.prompt_tokens for r in results] == [2, 4, 6]
    assert encoder.batches == [1, 6]


async def test_one_bad_request_does_not_take_others_with_it(service: EmbeddingService, encoder: SumEncoder) -> None:
    holding = await hold(service, encoder)
    good, bad = asyncio.create_task(service.embed(["a"])), asyncio.create_task(service.embed(["bad"]))
    await asyncio.sleep(0)
    encoder.gate.set()
    with pytest.raises(EngineDeadError, match="bad text"):
        await bad
    assert as_lists(await good) == [[97, 1]]
    await holding
    assert as_lists(await service.embed(["b"])) == [[98, 1]]


async def test_refusals(service: EmbeddingService) -> None:
    with pytest.raises(InvalidRequestError, match="no texts"):
        await service.embed([])
    with pytest.raises(InvalidRequestError, match="at most 10"):
        await service.embed(["a"] * 11)


async def test_overload(service: EmbeddingService, encoder: SumEncoder) -> None:
    holding = await hold(service, encoder)
    tasks = [asyncio.create_task(service.embed(["a"])) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await service.embed(["one too many"])
    encoder.gate.set()
    await asyncio.gather(holding, *tasks)


async def test_a_caller_that_left_is_not_served(service: EmbeddingService, encoder: SumEncoder) -> None:
    holding = await hold(service, encoder)
    gone = asyncio.create_task(service.embed(["gone"] * 3))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    encoder.gate.set()
    await holding
    await service.embed(["a"])
    assert encoder.batches == [1, 1]


async def test_close_answers_everyone(service: EmbeddingService, encoder: SumEncoder) -> None:
    holding = await hold(service, encoder)
    waiting = asyncio.create_task(service.embed(["a"]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(service.close))
    with pytest.raises(EngineDeadError, match="closed"):
        await waiting
    encoder.gate.set()
    await closing
    await holding
    with pytest.raises(EngineDeadError, match="closed"):
        await service.embed(["late"])
