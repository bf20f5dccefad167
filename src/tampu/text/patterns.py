"""Regular expressions of JSON schemas (ECMA 262) to ones `llguidance` reads the same way.

A pattern is parsed here and written anew: anchored at both ends, every character and class spelled out. What both
dialects spell alike but mean differently (`.`, `\\s`, `&&` in a class, `$` before a line end) so keeps the schema's
meaning; where ECMA 262 and Python disagree about a class, the narrower reading is taken. What a grammar cannot do
(look-around, back references, word boundaries) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_PATTERN_CHARS = 2000
MAX_WEIGHT = 20_000  # characters of the pattern, repeated parts counted as often as they may be repeated
_MAX_DEPTH = 32
_MAX_BRANCHES = 64

_ANY = "(?s:.)*"
_QUANTIFIER = re.compile(r"\{(\d{1,7})(?:(,)(\d{1,7})?)?\}")
_CATEGORY = re.compile(r"\{([A-Z][a-z]?)\}")
_GROUP_NAME = re.compile(r"<[A-Za-z_][A-Za-z0-9_]*>")

# (what every dialect has in the class, what some dialect has): in ECMA 262 \d and \w are ASCII, in Python they are not.
_CLASSES = {
    "d": (r"0-9", r"\p{Nd}"),
    "w": (r"0-9A-Za-z_", r"\w\p{L}\p{N}\p{M}\p{Pc}"),
    "s": (
        r"\t\n\x{B}\x{C}\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}",
        r"\s\x{1C}-\x{1F}\x{85}\x{FEFF}",
    ),
}
_CONTROL_ESCAPES = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}


class PatternError(ValueError):
    """The pattern is wrong or cannot be enforced; `str(error)` says why."""


@dataclass(frozen=True, slots=True)
class _Set:
    """One character out of a set, in the target's spelling."""

    spelling: str


@dataclass(frozen=True, slots=True)
class _Anchor:
    at_start: bool


@dataclass(frozen=True, slots=True)
class _Repeat:
    node: _Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: tuple[_Sequence, ...]


_Node = _Set | _Anchor | _Repeat | _Choice


def anchored_pattern(pattern: str) -> str:
    """A pattern for whole strings in which the given pattern matches somewhere. Raises PatternError."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError(f"the pattern is longer than {MAX_PATTERN_CHARS} characters")
    choice = _Parser(pattern).parse()
    branches = [_whole(branch) for branch in _expanded(choice)]
    return f"^(?:{'|'.join(branches)})$"


def _expanded(choice: _Choice) -> list[_Sequence]:
    """The branches, with groups at either end that hold anchors multiplied out."""
    done: list[_Sequence] = []
    open_branches = list(reversed(choice.branches))
    while open_branches:
        parts = open_branches.pop().parts
        for index in {0, len(parts) - 1} if parts else ():
            group = parts[index]
            if isinstance(group, _Choice) and _has_anchor(group):
                before, after = parts[:index], parts[index + 1 :]
                open_branches += [_Sequence((*before, *b.parts, *after)) for b in reversed(group.branches)]
                break
        else:
            done.append(_Sequence(parts))
        if len(done) + len(open_branches) > _MAX_BRANCHES:
            raise PatternError("the pattern has too many alternatives around ^ or $")
    return done


def _whole(branch: _Sequence) -> str:
    """One alternative as a pattern for whole strings."""
    parts = list(branch.parts)
    head = tail = _ANY
    while parts and parts[0] == _Anchor(at_start=True):
        parts.pop(0)
        head = ""
    while parts and parts[-1] == _Anchor(at_start=False):
        parts.pop()
        tail = ""
    spelled = "".join(_spelled(part) for part in parts)
    return f"{head}{spelled}{tail}"


def _has_anchor(node: _Node) -> bool:
    if isinstance(node, _Choice):
        return any(_has_anchor(part) for branch in node.branches for part in branch.parts)
    if isinstance(node, _Repeat):
        return _has_anchor(node.node)
    return isinstance(node, _Anchor)


def _spelled(node: _Node) -> str:
    match node:
        case _Set(spelling):
            return spelling
        case _Anchor():
            raise PatternError("^ and $ can only stand at the ends of the pattern")
        case _Repeat(inner, least, most):
            return f"(?:{_spelled(inner)}){{{least},{'' if most is None else most}}}"
        case _Choice(branches):
            return "(?:" + "|".join("".join(_spelled(part) for part in branch.parts) for branch in branches) + ")"


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._depth = 0

    def parse(self) -> _Choice:
        choice, weight = self._choice()
        if self._position < len(self._pattern):
            raise PatternError("unmatched )")
        if weight > MAX_WEIGHT:
            raise PatternError("the pattern repeats too much")
        return choice

    def _peek(self) -> str:
        return self._pattern[self._position : self._position + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise PatternError("the pattern ends too early")
        self._position += 1
        return char

    def _choice(self) -> tuple[_Choice, int]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternError("groups are nested too deeply")
        branches, weight = [], 0
        while True:
            branch, branch_weight = self._sequence()
            branches.append(branch)
            weight += branch_weight + 1
            if self._peek() != "|":
                break
            self._position += 1
        self._depth -= 1
        return _Choice(tuple(branches)), weight

    def _sequence(self) -> tuple[_Sequence, int]:
        parts: list[_Node] = []
        weight = 0
        while (char := self._peek()) and char not in "|)":
            node, node_weight = self._atom(self._take())
            least, most = self._quantifier()
            if (least, most) != (1, 1):
                if _has_anchor(node):
                    raise PatternError("^ and $ cannot be repeated")
                node = _Repeat(node, least, most)
                node_weight *= max(least, most or 0, 1)
            parts.append(node)
            weight += node_weight
        return _Sequence(tuple(parts)), weight

    def _quantifier(self) -> tuple[int, int | None]:
        char = self._peek()
        bounds: tuple[int, int | None]
        if char and char in "*+?":
            self._position += 1
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        elif char == "{" and (counts := _QUANTIFIER.match(self._pattern, self._position)):
            self._position = counts.end()
            least = int(counts[1])
            bounds = (least, (int(counts[3]) if counts[3] else None) if counts[2] else least)
            if bounds[1] is not None and bounds[1] < least:
                raise PatternError("a repetition's bounds are out of order")
        else:
            return 1, 1
        if self._peek() == "?":  # lazy: the same strings match
            self._position += 1
        if self._peek() and (self._peek() in "*+?" or _QUANTIFIER.match(self._pattern, self._position)):
            raise PatternError("nothing to repeat")
        return bounds

    def _atom(self, char: str) -> tuple[_Node, int]:
        match char:
            case "(":
                return self._group()
            case "[":
                return _Set(self._class()), 1
            case ".":
                return _Set(r"[^\n\r\x{2028}\x{2029}]"), 1
            case "^":
                return _Anchor(at_start=True), 1
            case "$":
                return _Anchor(at_start=False), 1
            case "\\":
                return _Set(self._escape()), 1
            case "*" | "+" | "?":
                raise PatternError("nothing to repeat")
        if char == "{" and _QUANTIFIER.match(self._pattern, self._position - 1):
            raise PatternError("nothing to repeat")
        return _Set(_literal(ord(char))), 1

    def _group(self) -> tuple[_Choice, int]:
        if self._peek() == "?":
            self._position += 1
            kind = self._take()
            name = _GROUP_NAME.match(self._pattern, self._position - 1) if kind == "<" else None
            if name is not None:
                self._position = name.end()
            elif kind != ":":
                raise PatternError("look-around and inline flags are not supported")
        choice, weight = self._choice()
        if self._peek() != ")":
            raise PatternError("unmatched (")
        self._position += 1
        return choice, weight

    def _escape(self) -> str:
        char = self._take()
        if char.lower() in _CLASSES:
            return f"[{_class_item(char, is_negated=False)}]"
        if char in "pP":
            return f"\\{char}{{{self._category()}}}"
        if char in "bB":
            raise PatternError("word boundaries are not supported")
        return _literal(self._code_point(char))

    def _category(self) -> str:
        name = _CATEGORY.match(self._pattern, self._position)
        if name is None:
            raise PatternError(r"only general categories are supported after \p, such as \p{L} or \p{Nd}")
        self._position = name.end()
        return name[1]

    def _code_point(self, char: str) -> int:
        """The character that an escape stands for; the backslash and `char` are already taken."""
        if char in _CONTROL_ESCAPES:
            return _CONTROL_ESCAPES[char]
        if char == "c":
            letter = self._take()
            if not (letter.isascii() and letter.isalpha()):
                raise PatternError(r"\c needs a letter")
            return ord(letter) % 32
        if char == "x":
            return self._hex(2)
        if char == "u":
            return self._unicode()
        if char == "0" and not self._peek().isdigit():
            return 0
        if char.isdigit() or char == "k":
            raise PatternError("back references are not supported")
        if char.isascii() and char.isalpha():
            raise PatternError(f"\\{char} is not supported")
        return ord(char)

    def _hex(self, digits: int) -> int:
        spelled = self._pattern[self._position : self._position + digits]
        if len(spelled) < digits or not re.fullmatch("[0-9A-Fa-f]+", spelled):
            raise PatternError(f"an escape needs {digits} hexadecimal digits")
        self._position += digits
        return int(spelled, 16)

    def _unicode(self) -> int:
        if self._peek() == "{":
            end = self._pattern.find("}", self._position)
            spelled = self._pattern[self._position + 1 : end] if end > 0 else ""
            if not re.fullmatch("[0-9A-Fa-f]{1,6}", spelled) or int(spelled, 16) > 0x10FFFF:
                raise PatternError(r"\u{...} needs the number of a character")
            self._position = end + 1
            return int(spelled, 16)
        first = self._hex(4)
        if 0xD800 <= first < 0xDC00 and self._pattern.startswith("\\u", self._position):
            self._position += 2
            second = self._hex(4)
            if 0xDC00 <= second < 0xE000:
                return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            raise PatternError("half of a surrogate pair cannot be matched")
        return first

    def _class(self) -> str:
        is_negated = self._peek() == "^"
        if is_negated:
            self._position += 1
        items: list[str] = []
        while self._peek() != "]":
            items.append(self._class_range(is_negated))
        self._position += 1
        if not items:
            if is_negated:
                return "(?s:.)"
            raise PatternError("an empty class matches nothing")
        return f"[{'^' if is_negated else ''}{''.join(items)}]"

    def _class_range(self, is_negated: bool) -> str:
        low = self._class_member(is_negated)
        if self._peek() != "-" or self._pattern[self._position + 1 : self._position + 2] in ("]", ""):
            return low if isinstance(low, str) else _literal(low)
        self._position += 1
        high = self._class_member(is_negated)
        if isinstance(low, str) or isinstance(high, str):
            raise PatternError("a class cannot be the end of a range")
        if high < low:
            raise PatternError("a range in a class is out of order")
        return f"{_literal(low)}-{_literal(high)}"

    def _class_member(self, is_negated: bool) -> int | str:
        """A code point, or the spelling of a class such as \\d."""
        char = self._take()
        if char != "\\":
            return ord(char)
        char = self._take()
        if char.lower() in _CLASSES:
            return _class_item(char, is_negated=is_negated)
        if char in "pP":
            return f"\\{char}{{{self._category()}}}"
        if char == "b":
            return 8
        return self._code_point(char)


def _class_item(char: str, *, is_negated: bool) -> str:
    """The inside of a class for \\d, \\W and so on, so that the whole class is never wider than in any dialect."""
    narrow, wide = _CLASSES[char.lower()]
    if char.islower():
        return wide if is_negated else narrow
    return f"[^{narrow}]" if is_negated else f"[^{wide}]"


def _literal(code_point: int) -> str:
    if 0xD800 <= code_point < 0xE000:
        raise PatternError("half of a surrogate pair cannot be matched")
    return f"\\x{{{code_point:X}}}"
