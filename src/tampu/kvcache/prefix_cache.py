"""Finds blocks by the tokens whose KV they hold, so that a prompt's known beginning is not computed again.

Full blocks only. A block's key is a hash chained through all blocks before it, starting from adapter and tenant, so
equal keys mean equal positions, equal history, equal weights and the same owner. Knows no requests and no memory, and
does not know when KV is written: the scheduler publishes a block only after the step that filled it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence

from tampu.kvcache.block_pool import BlockPool

Digest = Callable[[bytes], bytes]

# Keys of a request's blocks: [0] is the root of its namespace, [i + 1] that of block i. Grows as tokens become known.
BlockKeys = list[bytes]


def blake2b_128(data: bytes) -> bytes:
    """A 128-bit hash that nobody can make collide on purpose: a prompt cannot be crafted to hit another's blocks."""
    return hashlib.blake2b(data, digest_size=16).digest()


class PrefixCache:
    """Maps chained block keys to block ids. Hashes only narrow the search: a hit is confirmed by comparing tokens."""

    def __init__(self, pool: BlockPool, block_size: int, *, digest: Digest = blake2b_128) -> None:
        self._pool = pool
        self._block_size = block_size
        self._digest = digest
        self._block_of_key: dict[bytes, int] = {}
        # block id -> (key, key of the block before, its tokens as 32-bit integers)
        self._content: dict[int, tuple[bytes, bytes, bytes]] = {}
        pool.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._block_of_key)

    def new_keys(self, lora_id: str | None, tenant: str) -> BlockKeys:
        """The empty chain of a request with this adapter and tenant."""
        adapter = b"-" if lora_id is None else b"+" + lora_id.encode("utf-8", "surrogatepass")
        owner = tenant.encode("utf-8", "surrogatepass")
        return [self._digest(b"%d:%b%b" % (len(adapter), adapter, owner))]

    def match(self, keys: BlockKeys, token_ids: Sequence[int], first: int, last: int) -> list[int]:
        """Ids of cached blocks for block indices `first`, `first + 1`, … of a request, up to `last` (exclusive).

        Stops at the first miss. Takes no reference: `share` the ids before anything else is allocated.
        """
        block_ids: list[int] = []
        for index in range(first, last):
            tokens = self._extend(keys, token_ids, index)
            block_id = self._block_of_key.get(keys[index + 1])
            if block_id is None:
                break
            _, parent, known_tokens = self._content[block_id]
            if parent != keys[index] or known_tokens != (tokens or self._tokens(token_ids, index)):
                break  # another prefix with the same hash
            block_ids.append(block_id)
        return block_ids

    def publish(self, keys: BlockKeys, token_ids: Sequence[int], index: int, block_id: int) -> bool:
        """Make the full, written block `index` of a request findable. False when its key is already taken: the
        block then stays private to its holder."""
        tokens = self._extend(keys, token_ids, index)
        key = keys[index + 1]
        if key in self._block_of_key:
            return False
        self._block_of_key[key] = block_id
        self._content[block_id] = (key, keys[index], tokens or self._tokens(token_ids, index))
        self._pool.cache(block_id)
        return True

    def clear(self) -> None:
        """Forget everything; held blocks stay with their holders."""
        for block_id in tuple(self._content):
            self._pool.uncache(block_id)
        self._content.clear()
        self._block_of_key.clear()

    def check_integrity(self) -> None:
        """Assert that both tables and the pool agree. For tests; slow."""
        assert len(self._block_of_key) == len(self._content) == self._pool.num_cached
        for key, block_id in self._block_of_key.items():
            assert self._content[block_id][0] == key

    def _extend(self, keys: BlockKeys, token_ids: Sequence[int], index: int) -> bytes | None:
        """Compute the chain up to block `index`; returns that block's tokens when they had to be packed for it."""
        tokens: bytes | None = None
        while len(keys) < index + 2:
            tokens = self._tokens(token_ids, len(keys) - 1)
            keys.append(self._digest(keys[-1] + tokens))
        return tokens

    def _tokens(self, token_ids: Sequence[int], index: int) -> bytes:
        start = index * self._block_size
        return array("i", token_ids[start : start + self._block_size]).tobytes()

    def _forget(self, block_id: int) -> None:
        key, _, _ = self._content.pop(block_id)
        del self._block_of_key[key]
