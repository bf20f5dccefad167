"""What a schema may cost, counted while it is read, and how one is refused. Knows no keyword's meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from tampu.core.errors import UnsupportedSchemaError

# Without \u escapes (see grammar.JSON_STYLE) these cannot be written; halves of surrogate pairs never can.
_UNWRITABLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """How large a schema may be. All counts are over one request's schemas together."""

    max_bytes: int = 512 << 10  # as JSON text
    max_depth: int = 64  # schemas within schemas, and values within enum and const
    max_nodes: int = 2_000  # schemas
    max_enum_values: int = 5_000
    max_pattern_chars: int = 20_000
    max_properties: int = 300  # in one object
    max_pattern_properties: int = 16  # in one object
    max_string_chars: int = 10_000  # of one name or one string in enum and const


class SchemaCosts:
    """Counts what the schemas of one grammar cost together."""

    def __init__(self, limits: SchemaLimits) -> None:
        self.limits = limits
        self._num_nodes = self._num_enum_values = self._num_pattern_chars = self._num_bytes = 0

    def count_bytes(self, number: int, path: str) -> None:
        """Count JSON text. Raises UnsupportedSchemaError when it is too much."""
        self._num_bytes += number
        if self._num_bytes > self.limits.max_bytes:
            refuse("", path, f"the schema is larger than {self.limits.max_bytes} bytes")

    def count(self, keyword: str, path: str, *, nodes: int = 0, enum_values: int = 0, pattern_chars: int = 0) -> None:
        """Count towards the limits. Raises UnsupportedSchemaError when one is passed."""
        self._num_nodes += nodes
        self._num_enum_values += enum_values
        self._num_pattern_chars += pattern_chars
        limits = self.limits
        for number, limit, what in (
            (self._num_nodes, limits.max_nodes, "schemas"),
            (self._num_enum_values, limits.max_enum_values, "enum values"),
            (self._num_pattern_chars, limits.max_pattern_chars, "characters of patterns"),
        ):
            if number > limit:
                refuse(keyword, path, f"there are more than {limit} {what}")

    def check_value(self, value: Any, keyword: str, path: str) -> None:
        """A value of enum or const, or a name: bounded, and of characters that can be written."""
        pending = [(value, 0)]
        while pending:
            item, depth = pending.pop()
            if depth > self.limits.max_depth:
                refuse(keyword, path, f"a value is nested more than {self.limits.max_depth} deep")
            if isinstance(item, dict):
                pending += [(part, depth + 1) for pair in item.items() for part in pair]
            elif isinstance(item, list):
                pending += [(part, depth + 1) for part in item]
            elif isinstance(item, str):
                if len(item) > self.limits.max_string_chars:
                    refuse(keyword, path, f"a string is longer than {self.limits.max_string_chars} characters")
                if found := _UNWRITABLE.search(item):
                    refuse(keyword, path, f"the character {found.group()!r} in a string cannot be written")


def refuse(keyword: str, path: str, reason: str) -> NoReturn:
    """Raise UnsupportedSchemaError for a keyword at a path (a JSON pointer; "" is the root)."""
    subject = f"keyword {keyword!r}" if keyword else "the schema"
    shown = path if len(path) <= 200 else f"{path[:200]}…"
    where = f"at {shown}" if path else "at the top of the schema"
    message = f"{subject} {where}: {reason}"
    raise UnsupportedSchemaError(keyword=keyword, path=path, reason=reason, message=message)
