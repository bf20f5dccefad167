"""Finds stop strings in text that arrives in pieces. Knows characters only.

An Aho-Corasick automaton over all stop strings: linear time, and its state says exactly how much of the text so far
may still become a stop string. Only that much is held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of some stop string."""

    depth: int  # its length in characters
    children: dict[str, _Node] = field(default_factory=dict)
    fallback: _Node | None = None  # the longest proper suffix that is a prefix of some stop string
    match: str | None = None  # the longest stop string that is a suffix of this prefix


def _build(stops: Sequence[str]) -> _Node:
    root = _Node(0)
    for stop in stops:
        node = root
        for char in stop:
            node = node.children.setdefault(char, _Node(node.depth + 1))
        node.match = stop
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for char, child in node.children.items():
            child.fallback = root if node is root else _step(root, node.fallback or root, char)
            child.match = child.match or child.fallback.match
            queue.append(child)
    return root


def _step(root: _Node, node: _Node, char: str) -> _Node:
    while char not in node.children and node is not root:
        node = node.fallback or root
    return node.children.get(char, root)


class StopStringMatcher:
    """Passes text through until the first stop string is complete; that string and what follows are dropped.

    The stop string that is completed first wins; of several completed by the same character, the longest. The result
    does not depend on how the text was cut. Empty stop strings are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._root = _build([stop for stop in stops if stop])
        self._node = self._root
        self._held = ""  # exactly the last `self._node.depth` characters
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that can no longer be part of a stop string. Nothing more comes once `matched` is set."""
        if self.matched is not None:
            return ""
        if not self._root.children:
            return text
        root, node = self._root, self._node
        for index, char in enumerate(text):
            node = _step(root, node, char)
            if node.match is not None:
                self.matched = node.match
                seen = self._held + text[: index + 1]
                self._held = ""
                return seen[: len(seen) - len(node.match)]
        self._node = node
        seen = self._held + text
        certain = len(seen) - node.depth
        self._held = seen[certain:]
        return seen[:certain]

    def finish(self) -> str:
        """The text still held back, now that no more comes. Call once, at the end."""
        held, self._held, self._node = self._held, "", self._root
        return held
