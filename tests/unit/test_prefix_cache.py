"""PrefixCache: what may be shared and what must not, then a seeded random walk against a twin without hashes."""

from __future__ import annotations

import random

import pytest

from tampu.kvcache.block_pool import BlockPool
from tampu.kvcache.prefix_cache import PrefixCache

BLOCK = 4


def filled(num_blocks: int = 8) -> tuple[BlockPool, PrefixCache]:
    pool = BlockPool(num_blocks)
    return pool, PrefixCache(pool, BLOCK)


def publish_all(
    pool: BlockPool, cache: PrefixCache, tokens: list[int], lora_id: str | None = None, tenant: str = ""
) -> list[int]:
    keys = cache.new_keys(lora_id, tenant)
    block_ids = [pool.allocate() for _ in range(len(tokens) // BLOCK)]
    for index, block_id in enumerate(block_ids):
        assert cache.publish(keys, tokens, index, block_id)
    return block_ids


def find(cache: PrefixCache, tokens: list[int], lora_id: str | None = None, tenant: str = "") -> list[int]:
    return cache.match(cache.new_keys(lora_id, tenant), tokens, 0, len(tokens) // BLOCK)


def test_the_longest_known_beginning_is_found() -> None:
    pool, cache = filled()
    block_ids = publish_all(pool, cache, list(range(12)))
    assert find(cache, list(range(12))) == block_ids
    assert find(cache, [*range(8), 99, 9, 10, 11]) == block_ids[:2]
    assert find(cache, list(range(7))) == block_ids[:1]
    assert find(cache, [1, *range(11)]) == []


def test_the_same_tokens_after_another_beginning_are_another_block() -> None:
    pool, cache = filled()
    publish_all(pool, cache, [1, 1, 1, 1, 5, 5, 5, 5])
    assert find(cache, [5, 5, 5, 5]) == []
    assert find(cache, [2, 2, 2, 2, 5, 5, 5, 5]) == []


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        ((None, ""), ("a", "")),
        (("a", ""), ("b", "")),
        ((None, ""), (None, "t")),
        (("a", "b"), ("ab", "")),
        ((None, "x"), ("-", "x")),
        (("", "x"), (None, "x")),
    ],
)
def test_adapters_and_tenants_never_share(mine: tuple[str | None, str], other: tuple[str | None, str]) -> None:
    """Trap 5: prefix reuse across adapters."""
    pool, cache = filled()
    block_ids = publish_all(pool, cache, list(range(8)), *mine)
    assert find(cache, list(range(8)), *mine) == block_ids
    assert find(cache, list(range(8)), *other) == []


def test_a_hit_is_confirmed_by_tokens_when_hashes_collide() -> None:
    pool = BlockPool(8)
    cache = PrefixCache(pool, BLOCK, digest=lambda data: b"same")
    keys = cache.new_keys(None, "")
    assert cache.publish(keys, [1, 2, 3, 4], 0, pool.allocate())
    assert cache.match(cache.new_keys(None, ""), [9, 9, 9, 9], 0, 1) == []
    assert cache.match(cache.new_keys(None, ""), [1, 2, 3, 4], 0, 1) == [0]
    assert not cache.publish(cache.new_keys(None, ""), [9, 9, 9, 9], 0, pool.allocate())
    cache.check_integrity()


def test_the_second_copy_of_a_block_stays_private() -> None:
    pool, cache = filled()
    first = publish_all(pool, cache, [1, 2, 3, 4])
    copy = pool.allocate()
    assert not cache.publish(cache.new_keys(None, ""), [1, 2, 3, 4], 0, copy)
    assert find(cache, [1, 2, 3, 4]) == first
    pool.release([copy])
    pool.check_integrity()
    cache.check_integrity()


def test_evicted_content_is_not_found_any_more() -> None:
    pool, cache = filled(2)
    block_ids = publish_all(pool, cache, list(range(8)))
    pool.release(reversed(block_ids))
    assert find(cache, list(range(8))) == block_ids
    assert pool.allocate() == block_ids[1], "the tail goes first"
    assert find(cache, list(range(8))) == block_ids[:1]
    cache.check_integrity()


def test_clear_frees_the_unheld_and_spares_the_held() -> None:
    pool, cache = filled(3)
    block_ids = publish_all(pool, cache, list(range(8)))
    pool.release(block_ids[1:])
    cache.clear()
    assert find(cache, list(range(8))) == []
    assert pool.num_free == 2
    pool.check_integrity()
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(6))
def test_random_walk_against_a_table_of_whole_prefixes(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(rng.choice((3, 8, 20)))
    cache = PrefixCache(pool, BLOCK)
    twin: dict[tuple[object, ...], int] = {}  # (adapter, tenant, every token up to the block's end) -> block id
    forget = pool.on_evict
    assert forget is not None

    def on_evict(block_id: int) -> None:
        forget(block_id)
        [prefix] = [p for p, b in twin.items() if b == block_id]
        del twin[prefix]

    pool.on_evict = on_evict
    tables: list[list[int]] = []
    for _ in range(600):
        if tables and (rng.random() < 0.5 or pool.num_free < 3):
            pool.release(reversed(tables.pop(rng.randrange(len(tables)))))
            continue
        lora_id, tenant = rng.choice((None, "a")), rng.choice(("", "x"))
        tokens = [rng.randint(0, 1) for _ in range(BLOCK * rng.randint(1, 3))]
        num_blocks = len(tokens) // BLOCK
        keys = cache.new_keys(lora_id, tenant)
        expected: list[int] = []
        for index in range(num_blocks):
            block = twin.get((lora_id, tenant, *tokens[: (index + 1) * BLOCK]))
            if block is None:
                break
            expected.append(block)
        table = cache.match(keys, tokens, 0, num_blocks)
        assert table == expected
        for block_id in table:
            pool.share(block_id)
        while len(table) < num_blocks and pool.num_free:
            index, block_id = len(table), pool.allocate()
            table.append(block_id)
            prefix = (lora_id, tenant, *tokens[: (index + 1) * BLOCK])
            assert cache.publish(keys, tokens, index, block_id) == (prefix not in twin)
            twin.setdefault(prefix, block_id)
        tables.append(table)
        pool.check_integrity()
        cache.check_integrity()
        assert len(cache) == len(twin)
