"""BlockPool: one property per test, then a seeded random walk against a twin made of plain lists."""

from __future__ import annotations

import random

import pytest

from tampu.kvcache.block_pool import BlockPool


class ListPool:
    """The obvious pool: one list in eviction order, searched from the front."""

    def __init__(self, num_blocks: int) -> None:
        self.counts = [0] * num_blocks
        self.cached: set[int] = set()
        self.released: list[int] = []  # free cached ids, least recently released first
        self.evicted: list[int] = []

    @property
    def free(self) -> set[int]:
        return {i for i, count in enumerate(self.counts) if count == 0}

    def expected_next(self) -> set[int]:
        blank = self.free - self.cached
        return blank or {self.released[0]}

    def take(self, block_id: int) -> None:
        if block_id in self.cached:
            self.released.remove(block_id)
            self.cached.remove(block_id)
            self.evicted.append(block_id)
        self.counts[block_id] = 1

    def share(self, block_id: int) -> None:
        if self.counts[block_id] == 0:
            self.released.remove(block_id)
        self.counts[block_id] += 1

    def release(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self.counts[block_id] -= 1
            if self.counts[block_id] == 0 and block_id in self.cached:
                self.released.append(block_id)

    def uncache(self, block_id: int) -> None:
        self.cached.remove(block_id)
        if block_id in self.released:
            self.released.remove(block_id)


def test_every_id_is_handed_out_once() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0
    with pytest.raises(AssertionError, match="without a free block"):
        pool.allocate()


def test_a_block_is_free_only_when_its_last_holder_let_go() -> None:
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.share(block_id)
    pool.release([block_id])
    assert pool.num_free == 1
    pool.release([block_id])
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="more often than held"):
        pool.release([block_id])


def test_cached_blocks_are_evicted_last_and_least_recently_released_first() -> None:
    pool = BlockPool(4)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    a, b, c = pool.allocate(), pool.allocate(), pool.allocate()
    pool.cache(a)
    pool.cache(b)
    pool.release([b])
    pool.release([c, a])
    assert pool.num_cached == 2
    assert {pool.allocate(), pool.allocate()} == {3, c}, "blank ids go first"
    assert evicted == []
    assert [pool.allocate(), pool.allocate()] == [b, a]
    assert evicted == [b, a]
    assert pool.num_cached == 0


def test_a_shared_cached_block_cannot_be_evicted() -> None:
    pool = BlockPool(2)
    a = pool.allocate()
    pool.cache(a)
    pool.release([a])
    pool.share(a)
    assert pool.num_free == 1
    assert pool.allocate() != a
    assert pool.num_free == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_walk_against_the_list_pool(seed: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.choice((1, 2, 5, 12))
    pool, twin = BlockPool(num_blocks), ListPool(num_blocks)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    held: list[int] = []  # one entry per reference
    for _ in range(1500):
        action = rng.randrange(6)
        if action <= 1 and pool.num_free:
            expected = twin.expected_next()
            block_id = pool.allocate()
            assert block_id in expected
            twin.take(block_id)
            held.append(block_id)
        elif action == 2 and held:
            batch = [held.pop(rng.randrange(len(held))) for _ in range(rng.randint(1, len(held)))]
            pool.release(batch)
            twin.release(batch)
        elif action == 3 and twin.cached:
            block_id = rng.choice(sorted(twin.cached))
            pool.share(block_id)
            twin.share(block_id)
            held.append(block_id)
        elif action == 4 and (uncached := sorted(set(held) - twin.cached)):
            block_id = rng.choice(uncached)
            pool.cache(block_id)
            twin.cached.add(block_id)
        elif action == 5 and twin.cached and rng.random() < 0.2:
            block_id = rng.choice(sorted(twin.cached))
            pool.uncache(block_id)
            twin.uncache(block_id)
        pool.check_integrity()
        assert pool.num_free == len(twin.free)
        assert pool.num_cached == len(twin.cached)
        assert [pool.reference_count(i) for i in range(num_blocks)] == twin.counts
        assert evicted == twin.evicted
