"""One choice of a generation: its engine request's tokens become text, tool calls, stop matches and a usage count."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from tampu.core.chat import ToolSpec
from tampu.core.output import FinishReason, RequestOutput, Usage
from tampu.core.request import Request
from tampu.core.step import TokenLogprobs
from tampu.serving.events import Event, Finished, TextDelta, TokenText, ToolCallDelta, whole_call
from tampu.serving.ports import BudgetedConstraint, PromisingConstraint, TextCodec
from tampu.text.tool_calls import (
    ArgumentsPiece,
    BegunCallPiece,
    Piece,
    TextPiece,
    ToolCallParser,
    ToolCallPiece,
    UnfinishedCallPiece,
)


class Choice:
    """Folds the outputs of one engine request into events; the last one is Finished.

    `tools` are those the model may call here (empty = text only); with `has_single_call` the first call ends it. Where
    a call is demanded, a later call that `max_tokens` cut off is dropped: it is no text of the answer.

    A call comes in pieces when the request's constraint promises that it will be complete, else whole. With stop
    strings nothing is certain: one may stand in the arguments and end the answer there. Where a call is demanded, stop
    strings have no effect: the demand is met, and its arguments are the grammar's.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        codec: TextCodec,
        *,
        stops: Sequence[str] = (),
        tools: Sequence[ToolSpec] = (),
        has_single_call: bool = False,
        is_call_demanded: bool = False,
    ) -> None:
        if is_call_demanded:
            stops = ()
        self.index = index
        self.request = request
        self._codec = codec
        self._decoder = codec.tool_decoder() if tools else codec.decoder()
        self._parser = ToolCallParser(tools, is_promised=self._is_call_promised) if tools else None
        self._matcher = codec.stop_matcher(stops) if stops else None
        self._has_single_call = has_single_call
        self._is_call_demanded = is_call_demanded
        self._promises = None if stops else _promising(request.constraint)
        self._num_tokens_read = 0  # by the parser
        self._num_calls = 0
        self._call_id = ""  # of the call that has begun; empty = none has
        self._num_completion_tokens = 0
        self._num_cached_tokens = 0
        self._pending_logprobs: list[TokenText] = []

    @property
    def request_id(self) -> str:
        """The engine's name for this choice."""
        return self.request.request_id

    def take(self, output: RequestOutput) -> list[Event]:
        """Events that one output leads to. Raises the output's error."""
        if output.error is not None:
            raise output.error
        if self._parser is not None and output.new_logprobs and len(output.new_token_ids) > 1:
            return self._take_singly(output)  # which tokens are a call's is known only one by one
        self._num_completion_tokens += len(output.new_token_ids)
        self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        if output.new_logprobs:
            self._note_logprobs(output)
        if self._parser is None:
            text, reason = self._text(output)
            events = self._text_events(text)
        else:
            pieces, reason = self._pieces(self._parser, output)
            events = self._tool_events(pieces)
        if self._has_single_call and self._num_calls:
            reason = reason or FinishReason.STOP
        if reason is not None:
            events.append(self._finished(reason))
        return events

    def _take_singly(self, output: RequestOutput) -> list[Event]:
        events: list[Event] = []
        last = len(output.new_token_ids) - 1
        for position, (token_id, logprobs) in enumerate(zip(output.new_token_ids, output.new_logprobs, strict=True)):
            reason = output.finish_reason if position == last else None
            single = replace(output, new_token_ids=(token_id,), new_logprobs=(logprobs,), finish_reason=reason)
            events += self.take(single)
            if events and isinstance(events[-1], Finished):
                break
        return events

    def _text(self, output: RequestOutput) -> tuple[str, FinishReason | None]:
        """The text that became certain with an output, cut at a stop string, and why the choice ends, if it does."""
        reason = output.finish_reason
        text = self._decoder.add(output.new_token_ids) if output.new_token_ids else ""
        if reason is not None:
            text += self._decoder.finish()
        if self._matcher is not None:
            text = self._matcher.feed(text)
            if self._matcher.matched is not None:
                return text, FinishReason.STOP
            if reason is not None:
                text += self._matcher.finish()
        return text, reason

    def _text_events(self, text: str) -> list[Event]:
        if not text:
            return []
        logprobs = tuple(self._pending_logprobs)
        self._pending_logprobs.clear()
        return [TextDelta(text, self.index, logprobs)]

    def _pieces(self, parser: ToolCallParser, output: RequestOutput) -> tuple[list[Piece], FinishReason | None]:
        """The pieces that became certain with an output, and why the choice ends, if it does."""
        pieces: list[Piece] = []
        if self._promises is not None:  # what is promised depends on the token
            for token_id in output.new_token_ids[:-1]:
                self._num_tokens_read += 1
                pieces += parser.feed(self._decoder.add([token_id]))
            self._num_tokens_read += len(output.new_token_ids[-1:])
            output = replace(output, new_token_ids=output.new_token_ids[-1:])
        text, reason = self._text(output)
        pieces += parser.feed(text)
        if reason is not None:
            rest = parser.finish()
            has_called = self._num_calls > 0 or any(isinstance(piece, ToolCallPiece) for piece in pieces)
            if self._is_call_demanded and has_called and reason is FinishReason.LENGTH:
                rest = [piece for piece in rest if not isinstance(piece, TextPiece)]
            pieces += rest
        return pieces, reason

    def _is_call_promised(self) -> bool:
        return self._promises is not None and self._promises.promises_call(self._num_tokens_read)

    def _tool_events(self, pieces: Sequence[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if not isinstance(piece, TextPiece):
                self._pending_logprobs.clear()  # they are the call's tokens, no content
            match piece:
                case TextPiece():
                    events += self._text_events(piece.text)
                case BegunCallPiece():
                    self._call_id = _new_call_id()
                    events.append(ToolCallDelta(self._num_calls, self._call_id, piece.name, index=self.index))
                case ArgumentsPiece():
                    events.append(ToolCallDelta(self._num_calls, arguments_json=piece.text, index=self.index))
                case ToolCallPiece():
                    events += self._call_events(piece)
                    if self._has_single_call:
                        break
                case UnfinishedCallPiece():
                    events.append(ToolCallDelta(self._num_calls, unfinished=piece.text, index=self.index))
                    self._num_calls += 1
                    self._call_id = ""
        return events

    def _call_events(self, piece: ToolCallPiece) -> list[Event]:
        call = replace(piece.call, call_id=self._call_id or _new_call_id())
        call_index = self._num_calls
        self._num_calls += 1
        if not self._call_id:
            return [*whole_call(call, call_index, self.index)]
        self._call_id = ""
        return [ToolCallDelta(call_index, call=call, index=self.index)]

    def _finished(self, reason: FinishReason) -> Finished:
        if self._num_calls and reason is FinishReason.STOP:
            reason = FinishReason.LENGTH if _is_cut_short(self.request.constraint) else FinishReason.TOOL_CALLS
        usage = Usage(
            prompt_tokens=len(self.request.prompt_token_ids) if self.index == 0 else 0,
            completion_tokens=self._num_completion_tokens,
            cached_tokens=self._num_cached_tokens if self.index == 0 else 0,
        )
        stop_match = self._matcher.matched if self._matcher is not None else None
        return Finished(reason, usage, self.index, stop_match)

    def _note_logprobs(self, output: RequestOutput) -> None:
        ended = output.finish_reason is FinishReason.STOP
        last = len(output.new_token_ids) - 1
        for position, (token_id, logprobs) in enumerate(zip(output.new_token_ids, output.new_logprobs, strict=False)):
            if ended and position == last and token_id in self.request.sampling_params.stop_token_ids:
                continue  # the end mark is no part of the answer
            self._pending_logprobs.append(self._token_text(token_id, logprobs))

    def _token_text(self, token_id: int, logprobs: TokenLogprobs) -> TokenText:
        spelled = self._codec.token_bytes(token_id)
        top = []
        for other_id, logprob in logprobs.top:
            other = self._codec.token_bytes(other_id)
            top.append((other.decode("utf-8", "replace"), other, logprob))
        return TokenText(spelled.decode("utf-8", "replace"), spelled, logprobs.logprob, tuple(top))


def _new_call_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


def _promising(constraint: object) -> PromisingConstraint | None:
    return constraint if isinstance(constraint, PromisingConstraint) else None


def _is_cut_short(constraint: object) -> bool:
    return isinstance(constraint, BudgetedConstraint) and constraint.is_cut_short
