"""Stop strings against a slow twin that looks at the whole text, for every cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tampu.text.stop_strings import StopStringMatcher


def slow_twin(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop that is complete first (the longest of those), and that stop."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def can_become_a_stop(held: str, stops: Sequence[str]) -> bool:
    return any(stop.startswith(held) for stop in stops)


STOPS = st.lists(st.text(alphabet="ab🦙", max_size=5), max_size=4)


@given(st.text(alphabet="ab🦙\n", max_size=30), STOPS, st.data())
def test_every_cut_equals_the_slow_twin_and_nothing_is_held_without_need(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    matcher = StopStringMatcher(stops)
    out = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        out += matcher.feed(text[start:end])
        if matcher.matched is None:
            held = text[len(out) : end]
            assert text.startswith(out)
            assert not held or can_become_a_stop(held, stops)
    out += matcher.finish()
    assert (out, matcher.matched) == slow_twin(text, stops)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ([], "abc", ("abc", None)),
        (["\n\n"], "one\n\ntwo", ("one", "\n\n")),
        (["abcd", "bc"], "xabcd", ("xa", "bc")),  # complete first wins
        (["c", "abc", "bc"], "xabcd", ("x", "abc")),  # of several complete at once, the longest
        (["aab"], "aaab", ("a", "aab")),
        (["User:"], "Use r:User", ("Use r:User", None)),
        (["", "z"], "az", ("a", "z")),
    ],
)
def test_cases(stops: list[str], text: str, expected: tuple[str, str | None]) -> None:
    for parts in ([text], list(text)):
        matcher = StopStringMatcher(stops)
        out = "".join(matcher.feed(part) for part in parts) + matcher.finish()
        assert (out, matcher.matched) == expected


def test_text_that_can_no_longer_become_a_stop_is_let_go_at_once() -> None:
    matcher = StopStringMatcher(["<end>"])
    assert [matcher.feed(part) for part in ("a<", "en", "x", "<e", "<end")] == ["a", "", "<enx", "", "<e"]
    assert matcher.finish() == "<end"


def test_nothing_comes_after_a_match() -> None:
    matcher = StopStringMatcher(["!"])
    assert matcher.feed("a!b") == "a"
    assert matcher.feed("c") == ""
    assert matcher.finish() == ""
    assert matcher.matched == "!"
