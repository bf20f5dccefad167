"""One choice of a generation: its engine request's tokens become text events, stop strings and a usage count."""

from __future__ import annotations

from tampu.core.output import FinishReason, RequestOutput, Usage
from tampu.core.request import Request
from tampu.core.step import TokenLogprobs
from tampu.serving.events import Event, Finished, TextDelta, TokenText
from tampu.serving.ports import TextCodec


class Choice:
    """Folds the outputs of one engine request into events; the last one is Finished."""

    def __init__(self, index: int, request: Request, codec: TextCodec, stops: tuple[str, ...]) -> None:
        self.index = index
        self.request = request
        self.num_completion_tokens = 0
        self._codec = codec
        self._decoder = codec.decoder()
        self._matcher = codec.stop_matcher(stops) if stops else None
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
        self.num_completion_tokens += len(output.new_token_ids)
        self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        if output.new_logprobs:
            self._note_logprobs(output)
        text = self._decoder.add(output.new_token_ids) if output.new_token_ids else ""
        if output.finish_reason is not None:
            text += self._decoder.finish()
        if self._matcher is not None:
            text = self._matcher.feed(text)
            if self._matcher.matched is not None:
                return self._finish(FinishReason.STOP, text)
            if output.finish_reason is not None:
                text += self._matcher.finish()
        if output.finish_reason is not None:
            return self._finish(output.finish_reason, text)
        return self._delta(text) if text else []

    def _delta(self, text: str) -> list[Event]:
        logprobs = tuple(self._pending_logprobs)
        self._pending_logprobs.clear()
        return [TextDelta(text, self.index, logprobs)]

    def _finish(self, reason: FinishReason, text: str) -> list[Event]:
        events = self._delta(text) if text or self._pending_logprobs else []
        usage = Usage(
            prompt_tokens=len(self.request.prompt_token_ids) if self.index == 0 else 0,
            completion_tokens=self.num_completion_tokens,
            cached_tokens=self._num_cached_tokens if self.index == 0 else 0,
        )
        stop_match = self._matcher.matched if self._matcher is not None else None
        events.append(Finished(reason, usage, self.index, stop_match))
        return events

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
