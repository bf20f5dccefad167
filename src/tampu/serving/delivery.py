"""From the engine's thread to the event loop: one wake-up for each step, whatever the number of requests in it."""

from __future__ import annotations

import asyncio
from collections import deque

from tampu.core.output import RequestOutput


class Channel:
    """Outputs of the requests of one generation, in order. One consumer, on the event loop."""

    __slots__ = ("_outputs", "_waiter")

    def __init__(self) -> None:
        self._outputs: deque[RequestOutput] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: RequestOutput) -> None:
        """Add an output; called on the event loop."""
        self._outputs.append(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[RequestOutput]:
        """Everything that arrived since the last call; waits for at least one."""
        if not self._outputs:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        outputs = list(self._outputs)
        self._outputs.clear()
        return outputs


class Delivery:
    """Routes what the engine says to the channel of each request. Empty when nothing runs."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channels: dict[str, Channel] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._channels

    def __len__(self) -> int:
        return len(self._channels)

    def open(self, request_id: str, channel: Channel) -> None:
        """Deliver this request's outputs to `channel`; called on the event loop, before the request is submitted."""
        self._loop = asyncio.get_running_loop()
        self._channels[request_id] = channel

    def close(self, request_id: str) -> None:
        """Forget a request; what still arrives for it is dropped."""
        self._channels.pop(request_id, None)

    def deliver(self, outputs: list[RequestOutput]) -> None:
        """Take one step's outputs; called from the engine's thread, never blocks."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._route, outputs)
        except RuntimeError:  # the loop closed in between: nobody is left to tell
            return

    def _route(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            channel = self._channels.get(output.request_id)
            if channel is not None:
                channel.push(output)
