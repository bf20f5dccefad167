"""Token look-ups for event loops: in a thread of its own, remembered for a few seconds. Knows no HTTP.

A revoked token keeps working for at most `ttl_s`; that is the price of not asking the database for every request.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tampu.store.tokens import TokenRecord, TokenStore

_MAX_REMEMBERED = 1024


class TokenCache:
    """Asks a `TokenStore` from an event loop. Keeps hashes of tokens, never the tokens."""

    def __init__(self, store: TokenStore, *, ttl_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock
        self._found: OrderedDict[bytes, tuple[float, TokenRecord]] = OrderedDict()
        self._has_tokens: tuple[float, bool] | None = None
        # A pool of its own: look-ups must not wait behind long tokenizations in the loop's default pool.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tampu-tokens")

    async def find_token(self, plaintext: str) -> TokenRecord | None:
        """The valid token with this plaintext, or None. A refusal is not remembered: a new token works at once."""
        key = hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).digest()
        remembered = self._found.get(key)
        if remembered is not None and self._clock() < remembered[0] and remembered[1].is_valid_at(time.time()):
            return remembered[1]
        self._found.pop(key, None)
        record = await asyncio.get_running_loop().run_in_executor(self._threads, self._store.find_token, plaintext)
        if record is not None:
            self._found[key] = (self._clock() + self._ttl_s, record)
            if len(self._found) > _MAX_REMEMBERED:
                self._found.popitem(last=False)
        return record

    async def has_tokens(self) -> bool:
        """Whether any token was ever made; a change is seen after `ttl_s` at the latest."""
        if self._has_tokens is None or self._clock() >= self._has_tokens[0]:
            has_tokens = await asyncio.get_running_loop().run_in_executor(self._threads, self._store.has_tokens)
            self._has_tokens = (self._clock() + self._ttl_s, has_tokens)
        return self._has_tokens[1]

    def close(self) -> None:
        """Let running look-ups end."""
        self._threads.shutdown(wait=True)
