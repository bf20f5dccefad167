"""Finds tool calls in the text of an answer, as it arrives. Knows the forms models write calls in, not what calls do.

Recognised: JSON objects `{"name": ..., "parameters" | "arguments": {...}}`, with `"type": "function"` and wrapped in
`"function"`, bare or in an array, in <tool_call> tags, in a ```json fence, after <|python_tag|>, several of them with
`;`, `,` or blanks between, with prose around. Everything else is text, and stays text: one pass, no backtracking, and
nothing is held back that can no longer be a call. A call is delivered when it is complete; one that is known to become
complete is also delivered piece by piece, from its name on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tampu.core.chat import ToolCall, ToolSpec
from tampu.text.call_values import ARGUMENTS_KEYS, CALL_KEYS, is_spelling_of, read_call
from tampu.text.json_scanner import JsonScanner, Scan

_OPENING_TAGS = ("<|python_tag|>", "<tool_call>")
_CLOSING_TAG = "</tool_call>"
_FENCE = "```"
_SEPARATORS = ";, \t\r\n"
_FENCE_LANGUAGES = ("", "json", "JSON", "tool_call")
_PROSE = re.compile(r"[^\s{\[<`]+")
_BLANKS = re.compile(r"\s+")
_MAX_HEAD_CHARS = 1024  # within which a call that is delivered piece by piece has its name


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A complete call to an offered tool. `call.call_id` is empty; `raw` is the JSON object as the model wrote it.

    `call.arguments_json` is the text of the arguments as the model wrote it, where that is an object in strict JSON;
    else it is written anew.
    """

    call: ToolCall
    raw: str


@dataclass(frozen=True, slots=True)
class BegunCallPiece:
    """A call to this tool has begun. ArgumentsPieces follow, then its ToolCallPiece, or an UnfinishedCallPiece."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPiece:
    """A part of the arguments of the call that has begun; together they are its `arguments_json`."""

    text: str


@dataclass(frozen=True, slots=True)
class UnfinishedCallPiece:
    """The call that had begun ends here without being one. `text` is all that was written of it, as the model wrote it.

    Only where a promise was not kept (see ToolCallParser).
    """

    text: str


Piece = TextPiece | ToolCallPiece | BegunCallPiece | ArgumentsPiece | UnfinishedCallPiece


def _never() -> bool:
    return False


class ToolCallParser:
    """Cuts one answer into text and calls to the offered tools.

    Feed the detokenized text (with the template's `shown_special_names` shown). The pieces, neighbouring texts joined,
    do not depend on how the text was cut. Dropped, and delivered nowhere: what belongs to a call's notation only, that
    is tags, fences and array brackets around calls, and blanks, `;` and `,` before, between and after them.

    `is_promised` is asked when the name of a tool has been read where a call has it: True = what is being written is
    certain to become a valid call, so that it may be delivered piece by piece. What was begun so never becomes text.
    """

    def __init__(self, tools: Sequence[ToolSpec], *, is_promised: Callable[[], bool] = _never) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._names = {json.dumps(tool.name, ensure_ascii=False): tool.name for tool in tools}
        self._is_promised = is_promised
        self._pieces: list[Piece] = []
        self._text: list[str] = []  # certain text, not yet a piece
        self._gap: list[str] = []  # blanks, separators and openers that belong to a call, if one follows
        self._tag = ""  # the beginning of a tag or a fence, also a part of the gap
        self._opened: set[str] = set()  # openers in the gap, by what closes them
        self._open: set[str] = set()  # openers of the call just delivered, by what closes them
        self._is_after_call = False  # only gap since the last call
        self._is_in_fence = False  # inside a fence that was delivered as text
        self._scanner: JsonScanner | None = None
        self._base = 0  # depth of the scanner at which calls lie: 0, or 1 in an array
        self._is_call = False  # what is scanned may still be a call; else it is text, and only its end matters
        self._raw: list[str] = []  # what was scanned of it
        self._num_raw = 0  # characters of that
        self._key = ""  # the latest key of the call's own object
        self._value_start = 0  # where in `raw` its value begins
        self._arguments_span: tuple[int, int] | None = None  # where in `raw` the arguments are, if they are an object
        self._is_begun = False  # its BegunCallPiece was delivered
        self._is_streaming = False  # inside the arguments of a call that has begun
        self._has_streamed = False
        self._fragment: list[str] = []  # of its arguments, not yet a piece

    def feed(self, text: str) -> list[Piece]:
        """What became certain with this piece of text."""
        position = 0
        while position < len(text):
            if self._scanner is not None:
                position = self._scan(self._scanner, text, position)
            elif self._tag:
                position = self._in_tag(text[position], position)
            else:
                position = self._between(text, position)
        return self._take()

    def finish(self) -> list[Piece]:
        """What was still held back, as text: an unfinished call, a lone opener. Call once, at the end."""
        held = "".join(self._raw)
        if self._is_after_call and not self._tag and not self._opened and not held.strip(_SEPARATORS):
            self._gap.clear()
            self._forget()
        self._give_up()
        return self._take()

    def _take(self) -> list[Piece]:
        self._flush()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _flush(self) -> None:
        """Text, or a part of arguments: never both, since a call flushes what was before it."""
        if self._text:
            self._pieces.append(TextPiece("".join(self._text)))
            self._text.clear()
        if self._fragment:
            self._pieces.append(ArgumentsPiece("".join(self._fragment)))
            self._fragment.clear()

    def _forget(self) -> None:
        """Nothing of a call has been scanned."""
        self._raw.clear()
        self._num_raw, self._arguments_span = 0, None
        self._is_begun = self._is_streaming = self._has_streamed = False

    def _say(self, text: str) -> None:
        if text:
            self._is_after_call = False
            self._open.clear()
            self._text.append(text)

    def _give_up(self) -> None:
        """What is held back is text after all, or a call that had begun and came to nothing."""
        if _FENCE in self._opened:
            self._is_in_fence = True
        held = "".join((*self._gap, self._tag, *self._raw))
        if self._is_begun:
            self._flush()
            self._pieces.append(UnfinishedCallPiece(held))
            self._is_after_call, held = False, ""
            self._open.clear()
        self._tag, self._scanner = "", None
        self._gap.clear()
        self._forget()
        self._opened.clear()
        self._say(held)

    # --- outside JSON ---------------------------------------------------------------------------------------------

    def _between(self, text: str, position: int) -> int:
        if prose := _PROSE.match(text, position):
            run = prose.group()
            if self._is_after_call:
                rest = run.lstrip(";,")
                self._gap.append(run[: len(run) - len(rest)])
                run = rest
            if run:
                self._give_up()
                self._say(run)
            return prose.end()
        if blanks := _BLANKS.match(text, position):
            self._gap.append(blanks.group())
            return blanks.end()
        char = text[position]
        if char in "{[":
            self._scanner = JsonScanner(is_lenient=True)
            self._base = 0 if char == "{" else 1
            self._is_call = True
            return position
        self._tag = char
        return position + 1

    def _in_tag(self, char: str, position: int) -> int:
        """One more character of something that began with < or `."""
        if self._tag.startswith("`"):
            return self._in_fence(char, position)
        tag = self._tag + char
        known = (*_OPENING_TAGS, _CLOSING_TAG)
        if tag not in known:
            if any(name.startswith(tag) for name in known):
                self._tag = tag
                return position + 1
            self._give_up()
            return position
        self._tag = ""
        if tag in self._open and not self._opened:
            self._close(tag)
            return position + 1
        self._gap.append(tag)
        if tag == _CLOSING_TAG:
            self._give_up()
        else:
            self._opened.add(_CLOSING_TAG if tag == "<tool_call>" else tag)
        return position + 1

    def _in_fence(self, char: str, position: int) -> int:
        tag = self._tag + char
        if len(tag) < len(_FENCE) and char == "`":
            self._tag = tag
        elif len(tag) == len(_FENCE) and char == "`":
            self._tag = tag
            if _FENCE in self._open and not self._opened:
                self._tag = ""
                self._close(_FENCE)
            elif self._is_in_fence:
                self._is_in_fence = False
                self._give_up()
        elif len(tag) > len(_FENCE) and any(language.startswith(tag[3:]) for language in _FENCE_LANGUAGES):
            self._tag = tag
        elif tag[3:-1] in _FENCE_LANGUAGES and self._tag.startswith(_FENCE) and (char in "{[" or char.isspace()):
            self._gap.append(self._tag)
            self._tag = ""
            self._opened.add(_FENCE)
            return position
        else:
            if self._tag.startswith(_FENCE):
                self._is_in_fence = True
            self._give_up()
            return position
        return position + 1

    def _close(self, closer: str) -> None:
        """The closing tag or fence right after a delivered call: dropped, with the blanks and separators before it."""
        self._open.discard(closer)
        self._gap.clear()

    # --- inside JSON ----------------------------------------------------------------------------------------------

    def _scan(self, scanner: JsonScanner, text: str, position: int) -> int:
        event, end = scanner.step(text, position)
        if self._is_call:
            self._raw.append(text[position:end])
            self._num_raw += end - position
            if self._is_streaming:
                self._fragment.append(text[position:end])
        else:
            self._say(text[position:end])
        if event is Scan.BROKEN:
            self._give_up()
        elif self._is_call:
            self._judge(scanner, event)
        if event is Scan.DONE:
            self._scanner = None
        return end

    def _judge(self, scanner: JsonScanner, event: Scan) -> None:
        """Decide whether what is scanned is a call, can be one, or is text."""
        depth = scanner.depth - self._base  # 0 = between calls, 1 = directly in a call's object, -1 = after an array
        match event:
            case Scan.KEY if depth == 1:
                self._key = scanner.key
                if scanner.key not in CALL_KEYS or (self._has_streamed and scanner.key in ARGUMENTS_KEYS):
                    self._is_text()
            case Scan.OPEN if depth == (1 if scanner.is_in_scalar else 2):
                self._value_began(scanner)
            case Scan.VALUE if depth == 1:
                self._value_ended()
            case Scan.MORE if depth == 1 and scanner.is_in_key:
                if not any(key.startswith(scanner.key) for key in CALL_KEYS):
                    self._is_text()
            case Scan.OPEN if self._base == 1 and depth == (0 if scanner.is_in_scalar else 1):
                if not scanner.is_in_object:  # an array of something else
                    self._is_text()
            case Scan.VALUE | Scan.DONE if depth == 0:
                self._call_ended()
            case Scan.DONE:
                if self._is_after_call and "".join(self._raw).strip() == "]":
                    self._forget()
                else:
                    self._is_text()

    def _value_began(self, scanner: JsonScanner) -> None:
        """A value directly in the call's object, of the latest key."""
        self._value_start = self._num_raw - 1
        if self._is_begun and self._key in ARGUMENTS_KEYS and not scanner.is_in_scalar and scanner.is_in_object:
            self._fragment.append("{")
            self._is_streaming = self._has_streamed = True

    def _value_ended(self) -> None:
        self._is_streaming = False
        if self._key in ARGUMENTS_KEYS:
            self._arguments_span = (self._value_start, self._num_raw)
        elif self._key == "name" and not self._is_begun and self._num_raw <= _MAX_HEAD_CHARS:
            name = self._names.get("".join(self._raw)[self._value_start :])
            if name is not None and self._is_promised():
                self._flush()
                self._pieces.append(BegunCallPiece(name))
                self._is_begun = True

    def _call_ended(self) -> None:
        held = "".join(self._raw)
        raw = held[held.index("{") :]
        call = read_call(raw, self._tools)
        if call is None:
            self._is_text()
            return
        written = held[slice(*self._arguments_span)] if self._arguments_span is not None else ""
        if not self._has_streamed and not is_spelling_of(written, call.arguments):
            written = json.dumps(call.arguments, ensure_ascii=False)
        if self._is_begun and not self._has_streamed:
            self._fragment.append(written)
        self._flush()
        self._pieces.append(ToolCallPiece(replace(call, arguments_json=written), raw))
        self._gap.clear()
        self._forget()
        self._open |= self._opened
        self._opened.clear()
        self._is_after_call = True

    def _is_text(self) -> None:
        """What is scanned is no call: let it go, but follow it to its end, so that nothing inside is taken for one."""
        scanner = self._scanner
        assert scanner is not None
        scanner.is_lenient = False
        self._give_up()
        self._scanner, self._is_call = scanner, False


def parse_tool_calls(text: str, tools: Sequence[ToolSpec]) -> list[Piece]:
    """All pieces of a complete text, neighbouring texts joined."""
    parser = ToolCallParser(tools)
    return join_texts([*parser.feed(text), *parser.finish()])


def join_texts(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces, neighbouring texts joined, and neighbouring parts of arguments."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, TextPiece) and isinstance(last, TextPiece):
            joined[-1] = TextPiece(last.text + piece.text)
        elif isinstance(piece, ArgumentsPiece) and isinstance(last, ArgumentsPiece):
            joined[-1] = ArgumentsPiece(last.text + piece.text)
        else:
            joined.append(piece)
    return joined
