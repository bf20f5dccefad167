"""An incremental JSON recogniser: says character by character whether a text is still, is, or cannot be JSON.

Linear time, bounded depth, no backtracking. It reports where keys and values of the outer levels end, so a reader can
decide early what it is looking at. Builds no values.
"""

from __future__ import annotations

import re
from enum import Enum, auto

MAX_DEPTH = 128

_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_STRING_RUN_LENIENT = re.compile(r'[^"\\\x00-\x08\x0b\x0c\x0e-\x1f]*')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")
_BLANKS = frozenset(" \t\r\n")
_SCALAR_CHARS = frozenset("0123456789+-.eEtrufalsn")
_MAX_SCALAR_CHARS = 1024
_MAX_KEY_CHARS = 64  # as much of a key as is kept
_LITERALS = frozenset({"true", "false", "null"})


class Scan(Enum):
    """What `JsonScanner.step` stopped at."""

    MORE = auto()  # the text ended inside the value
    OPEN = auto()  # a value began
    KEY = auto()  # an object key ended
    VALUE = auto()  # a value inside the outermost one ended
    DONE = auto()  # the outermost value ended
    BROKEN = auto()  # this character cannot follow: the text is not JSON


class _Expect(Enum):
    VALUE = auto()
    FIRST_ITEM = auto()  # a value or the end of the array
    FIRST_KEY = auto()  # a key or the end of the object
    KEY = auto()
    COLON = auto()
    SEPARATOR = auto()  # a comma or the end
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    SCALAR = auto()  # a number, true, false or null


class JsonScanner:
    """Recognises one object or array.

    `is_lenient` lets line ends and tabs into strings unescaped, as models write them; never into keys.
    """

    def __init__(self, *, is_lenient: bool) -> None:
        self.is_lenient = is_lenient
        self._closers: list[str] = []  # what closes each open level
        self._expect = _Expect.VALUE
        self._is_key = False
        self._hex_left = 0
        self._scalar = ""
        self.key = ""  # the beginning of the last key as it is spelled, while and after it is read

    @property
    def depth(self) -> int:
        """Open objects and arrays."""
        return len(self._closers)

    @property
    def is_in_object(self) -> bool:
        """True when the innermost open level is an object."""
        return self._closers[-1:] == ["}"]

    @property
    def is_in_scalar(self) -> bool:
        """True inside a string value, a number, true, false or null."""
        return not self._is_key and self._expect in (_Expect.STRING, _Expect.ESCAPE, _Expect.HEX, _Expect.SCALAR)

    @property
    def is_in_key(self) -> bool:
        """True inside the quotes of an object key."""
        return self._is_key and self._expect in (_Expect.STRING, _Expect.ESCAPE, _Expect.HEX)

    def step(self, text: str, start: int) -> tuple[Scan, int]:
        """Read from `start` to the next event. Returns it and the position after it (BROKEN: of the bad character)."""
        position = start
        while position < len(text):
            event, position = self._read(text, position)
            if event is not None:
                return event, position
        return Scan.MORE, position

    def _read(self, text: str, position: int) -> tuple[Scan | None, int]:
        expect = self._expect
        if expect is _Expect.STRING:
            return self._in_string(text, position)
        char = text[position]
        if expect is _Expect.SCALAR:
            return self._in_scalar(char, position)
        if expect is _Expect.ESCAPE or expect is _Expect.HEX:
            return self._in_escape(char, position)
        if char in _BLANKS:
            return None, position + 1
        if expect is _Expect.COLON:
            self._expect = _Expect.VALUE
            return (None, position + 1) if char == ":" else (Scan.BROKEN, position)
        if expect is _Expect.SEPARATOR and char == ",":
            self._expect = _Expect.KEY if self._closers[-1] == "}" else _Expect.VALUE
            return None, position + 1
        may_close = expect in (_Expect.SEPARATOR, _Expect.FIRST_ITEM, _Expect.FIRST_KEY)
        if may_close and char == self._closers[-1]:
            self._closers.pop()
            return self._value_ended(), position + 1
        if expect in (_Expect.KEY, _Expect.FIRST_KEY) and char == '"':
            self._is_key, self.key, self._expect = True, "", _Expect.STRING
            return None, position + 1
        if expect in (_Expect.VALUE, _Expect.FIRST_ITEM):
            return self._open_value(char, position)
        return Scan.BROKEN, position

    def _open_value(self, char: str, position: int) -> tuple[Scan | None, int]:
        if char in "{[":
            if len(self._closers) >= MAX_DEPTH:
                return Scan.BROKEN, position
            self._closers.append("}" if char == "{" else "]")
            self._expect = _Expect.FIRST_KEY if char == "{" else _Expect.FIRST_ITEM
        elif not self._closers:  # the outermost value is an object or an array
            return Scan.BROKEN, position
        elif char == '"':
            self._is_key, self._expect = False, _Expect.STRING
        elif char in "-0123456789tfn":
            self._is_key, self._scalar, self._expect = False, char, _Expect.SCALAR
        else:
            return Scan.BROKEN, position
        return Scan.OPEN, position + 1

    def _value_ended(self) -> Scan:
        self._expect = _Expect.SEPARATOR
        return Scan.VALUE if self._closers else Scan.DONE

    def _in_string(self, text: str, position: int) -> tuple[Scan | None, int]:
        is_lenient = self.is_lenient and not self._is_key
        run = (_STRING_RUN_LENIENT if is_lenient else _STRING_RUN).match(text, position)
        assert run is not None  # it matches the empty string
        self._spell_key(run.group())
        position = run.end()
        if position == len(text):
            return None, position
        if text[position] == "\\":
            self._expect = _Expect.ESCAPE
            self._spell_key("\\")
            return None, position + 1
        if text[position] != '"':
            return Scan.BROKEN, position
        if self._is_key:
            self._expect = _Expect.COLON
            return Scan.KEY, position + 1
        return self._value_ended(), position + 1

    def _spell_key(self, part: str) -> None:
        if self._is_key and len(self.key) < _MAX_KEY_CHARS:
            self.key += part

    def _in_escape(self, char: str, position: int) -> tuple[Scan | None, int]:
        self._spell_key(char)
        if self._expect is _Expect.HEX:
            if char not in "0123456789abcdefABCDEF":
                return Scan.BROKEN, position
            self._hex_left -= 1
            self._expect = _Expect.HEX if self._hex_left else _Expect.STRING
        elif char == "u":
            self._expect, self._hex_left = _Expect.HEX, 4
        elif char in '"\\/bfnrt':
            self._expect = _Expect.STRING
        else:
            return Scan.BROKEN, position
        return None, position + 1

    def _in_scalar(self, char: str, position: int) -> tuple[Scan | None, int]:
        if char in _SCALAR_CHARS and len(self._scalar) < _MAX_SCALAR_CHARS:
            self._scalar += char
            return None, position + 1
        if self._scalar not in _LITERALS and not _NUMBER.match(self._scalar):
            return Scan.BROKEN, position
        return self._value_ended(), position  # the character after it is read again, outside
