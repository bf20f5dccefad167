"""Schema patterns: the translation matches what ECMA 262 and Python both match, and nothing more."""

from __future__ import annotations

import re

import pytest
from byte_vocabulary import accepts, byte_compiler
from hypothesis import given, settings
from hypothesis import strategies as st

from tampu.text.patterns import PatternError, anchored_pattern


def matches(pattern: str, text: str) -> bool:
    grammar = byte_compiler().json_schema({"type": "string", "pattern": pattern})
    return accepts(grammar, f'"{text}"')


@pytest.mark.parametrize(
    ("pattern", "matched", "unmatched"),
    [
        ("^a+$", ["a", "aa"], ["", "ba", "aab"]),
        ("a", ["a", "xay"], ["", "x"]),
        ("", ["", "x"], []),
        ("^ab|c$", ["abx", "xc"], ["xab", "cx"]),
        ("(^x)|(y$)", ["xa", "ay"], ["ya"]),
        ("^(a|b$)", ["ax", "b"], ["bx", "xb"]),
        (r"^\d{3}-\d{4}$", ["123-4567"], ["١٢٣-4567", "1234567"]),
        (r"^\w+$", ["a_9"], ["é", "a-b", ""]),
        (r"^\W$", ["-", " "], ["é", "a", "_"]),
        (r"^[^\s]+$", ["ab"], ["a b", "a\u0085b", "a\ufeffb"]),
        (r"^\S$", ["a"], [" ", "\u00a0"]),
        (r"^[\w-]+@[a-z.]+\.[a-z]{2,}$", ["a-b@c.de"], ["a@b", "@c.de"]),
        ("[a&&b]", ["&", "a"], ["x"]),
        ("[[a]]", ["[]", "a]"], ["a"]),
        ("^[a-]$", ["a", "-"], ["b"]),
        ("^.$", ["a", "🦙"], ["", "ab", "\u2028"]),
        (r"^\ud83e\udd99\u0041\x42\u{43}$", ["🦙ABC"], ["ABC"]),
        (r"^\/x\-y\.$", ["/x-y."], ["/x-yz"]),
        (r"^\p{Lu}\P{L}$", ["A1"], ["a1", "AA"]),
        ("^a{,3}$", ["a{,3}"], ["aaa"]),
        ("^a{2,3}?b*?$", ["aa", "aaab"], ["a", "aaaa"]),
        ("^(?:ab)+(?<n>c)?$", ["abab", "abc"], ["c"]),
    ],
)
def test_meaning(pattern: str, matched: list[str], unmatched: list[str]) -> None:
    assert [text for text in matched if not matches(pattern, text)] == []
    assert [text for text in unmatched if matches(pattern, text)] == []


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?=a)b", "look-around"),
        ("(?<!a)b", "look-around"),
        ("(?i)a", "inline flags"),
        (r"\bfoo", "word boundaries"),
        (r"(a)\1", "back references"),
        (r"\k<n>", "back references"),
        ("x^y", "only stand at the ends"),
        ("(", "unmatched ("),
        ("a)", "unmatched )"),
        ("a**", "nothing to repeat"),
        ("*a", "nothing to repeat"),
        ("{2}", "nothing to repeat"),
        ("^*", "cannot be repeated"),
        ("a{3,1}", "out of order"),
        ("[b-a]", "out of order"),
        (r"[\d-z]", "cannot be the end of a range"),
        ("[]", "an empty class"),
        ("[a", "ends too early"),
        ("a\\", "ends too early"),
        (r"\q", r"\q is not supported"),
        (r"\u12", "4 hexadecimal digits"),
        (r"\u{110000}", "number of a character"),
        (r"\ud800", "surrogate"),
        (r"\p{Script=Greek}", "only general categories"),
        ("(a{1,1000}){1,1000}", "repeats too much"),
        ("(" * 40 + ")" * 40, "nested too deeply"),
        ("a" * 3000, "longer than 2000"),
        ("|".join(["^a"] * 100), "too many alternatives"),
    ],
)
def test_refused(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError) as caught:
        anchored_pattern(pattern)
    assert reason in str(caught.value)


PARTS = st.sampled_from(
    ["a", "b", "-", ".", "[ab]", "[^a]", r"\d", r"\s", "(a|b)", "(?:ab)", "a*", "b+", "c?", "[a-c]{1,2}"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=4), st.booleans(), st.booleans(), st.text("abc-1 ", max_size=6))
def test_equal_to_python_where_the_dialects_agree(parts: list[str], start: bool, end: bool, text: str) -> None:
    pattern = f"{'^' if start else ''}{''.join(parts)}{'$' if end else ''}"
    assert matches(pattern, text) == (re.search(pattern, text) is not None)
