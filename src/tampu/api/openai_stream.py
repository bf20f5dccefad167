"""Events to the frames of an OpenAI stream, for one prompt or several. Knows no format: `openai_answer` does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from tampu.api.errors import openai_error, to_api_error
from tampu.api.openai_answer import ChatFrames, CompletionFrames, total_usage
from tampu.api.replies import DONE_FRAME, data_frame
from tampu.core.errors import TampuError
from tampu.serving.events import Event, Finished, TextDelta, ToolCallDelta
from tampu.serving.faults import StreamCut

_LOG = logging.getLogger("tampu.api")

OnError = Callable[[BaseException], bytes]


def broken_stream_frame(request_id: str, *, is_strict: bool) -> OnError:
    """What tells a client that its stream broke after the headers were sent."""

    def frame(error: BaseException) -> bytes:
        if not isinstance(error, TampuError):
            _LOG.error("request %s failed in its stream", request_id, exc_info=error)
        return data_frame({"error": openai_error(to_api_error(error), request_id, is_strict=is_strict)})

    return frame


async def chat_stream(
    events: AsyncGenerator[Event, None], frames: ChatFrames, num_choices: int, on_error: OnError
) -> AsyncGenerator[bytes, None]:
    """The frames of a chat completion with `num_choices` choices."""
    begun: set[int] = set()
    finished: list[Finished] = []
    async with aclosing(events):
        try:
            async for event in events:
                start = b""
                if event.index not in begun:
                    begun.add(event.index)
                    start = frames.role(event.index)
                match event:
                    case TextDelta():
                        frame = frames.text(event)
                    case ToolCallDelta():
                        frame = frames.tool_call(event) or b""
                    case Finished():
                        finished.append(event)
                        usage = total_usage(finished) if len(finished) == num_choices else None
                        frame = frames.finish(event, usage)
                if start or frame:
                    yield start + frame
        except Exception as error:
            yield on_error(error)
    yield DONE_FRAME


async def completion_stream(
    events: AsyncGenerator[tuple[int, Event], None],
    frames: CompletionFrames,
    num_prompts: int,
    num_choices: int,
    on_error: OnError,
) -> AsyncGenerator[bytes, None]:
    """The frames of a text completion; choices count through the prompts."""
    finished: list[Finished] = []
    async with aclosing(events):
        try:
            async for position, event in events:
                index = position * num_choices + event.index
                match event:
                    case TextDelta():
                        yield frames.text(event, index)
                    case Finished():
                        finished.append(event)
                        is_last = len(finished) == num_prompts * num_choices
                        yield frames.finish(event, index, total_usage(finished) if is_last else None)
                    case ToolCallDelta():
                        pass  # completions offer no tools
        except Exception as error:
            yield on_error(error)
    yield DONE_FRAME


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of several streams as they come, with the stream's position.

    Nothing is given out before every stream has given its first event, so that a problem of any of them is raised
    by the first `anext`, while a status can still be sent.
    """
    firsts = await _first_events(streams)
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(position, stream, queue)) for position, stream in enumerate(streams)]
    try:
        for position, first in enumerate(firsts):
            yield position, first
        num_open = len(pumps)
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for stream in streams:  # a pump that was cancelled before its first step has closed nothing
            await stream.aclose()


async def _first_events(streams: Sequence[AsyncGenerator[Event, None]]) -> list[Event]:
    """One event of each stream; closes all of them when one fails."""
    tasks = [asyncio.ensure_future(anext(stream)) for stream in streams]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
        raise


async def _pump(
    position: int,
    stream: AsyncGenerator[Event, None],
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None],
) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                queue.put_nowait((position, event))
    except (Exception, StreamCut) as error:
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
