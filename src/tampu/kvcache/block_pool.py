"""The ids of all KV blocks: which are free, how many requests hold each, which free ones still have findable content.

Knows no tokens, no requests and no memory. `PrefixCache` tells it which blocks are worth keeping.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """Reference-counted block ids `0 .. num_blocks - 1`.

    An id is in exactly one of three states: held (count >= 1), blank (free, content worthless), or evictable (free,
    content findable through the prefix cache). Blank ids are handed out first, then evictable ones, least recently
    released first.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self.on_evict: Callable[[int], None] | None = None  # told before an evictable id is handed out
        self._reference_counts = [0] * num_blocks
        self._is_cached = bytearray(num_blocks)
        self._blank = list(range(num_blocks - 1, -1, -1))  # stack, lowest id on top
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._num_cached = 0

    @property
    def num_free(self) -> int:
        """Ids that `allocate` could hand out now: blank and evictable."""
        return len(self._blank) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Ids whose content can be found again, held or not."""
        return self._num_cached

    def reference_count(self, block_id: int) -> int:
        """How many holders the block has."""
        return self._reference_counts[block_id]

    def allocate(self) -> int:
        """Hand out one free id with a count of 1. The caller has made sure that `num_free > 0`."""
        if self._blank:
            block_id = self._blank.pop()
        else:
            assert self._evictable, "allocate() without a free block"
            block_id, _ = self._evictable.popitem(last=False)
            self.uncache(block_id, is_evicted=True)
        self._reference_counts[block_id] = 1
        return block_id

    def share(self, block_id: int) -> None:
        """One holder more, for a cached block found through the prefix cache."""
        count = self._reference_counts[block_id]
        if count == 0:
            del self._evictable[block_id]
        self._reference_counts[block_id] = count + 1

    def release(self, block_ids: Iterable[int]) -> None:
        """One holder less for each id. Give a request's blocks last to first: then the tail of a prefix is evicted
        before the head that it needs in order to be found."""
        counts = self._reference_counts
        for block_id in block_ids:
            count = counts[block_id] - 1
            assert count >= 0, f"block {block_id} released more often than held"
            counts[block_id] = count
            if count == 0:
                if self._is_cached[block_id]:
                    self._evictable[block_id] = None
                else:
                    self._blank.append(block_id)

    def cache(self, block_id: int) -> None:
        """The content of this held block can be found from now on."""
        assert self._reference_counts[block_id] > 0
        assert not self._is_cached[block_id]
        self._is_cached[block_id] = 1
        self._num_cached += 1

    def uncache(self, block_id: int, *, is_evicted: bool = False) -> None:
        """The content is worthless from now on; `is_evicted` when the pool takes the id for new content."""
        assert self._is_cached[block_id]
        self._is_cached[block_id] = 0
        self._num_cached -= 1
        if is_evicted:
            if self.on_evict is not None:
                self.on_evict(block_id)
        elif block_id in self._evictable:
            del self._evictable[block_id]
            self._blank.append(block_id)

    def check_integrity(self) -> None:
        """Assert that every id is in exactly one state. For tests; slow."""
        blank, evictable = set(self._blank), set(self._evictable)
        assert len(blank) == len(self._blank), "a blank id is listed twice"
        assert not blank & evictable
        for block_id, count in enumerate(self._reference_counts):
            assert count >= 0
            is_free = block_id in blank or block_id in evictable
            assert is_free == (count == 0), f"block {block_id}: count {count}, free {is_free}"
            if is_free:
                assert (block_id in evictable) == bool(self._is_cached[block_id])
        assert self._num_cached == sum(self._is_cached)
