"""The start-up banner: which weights answer, on what, with how much room. Facts in, lines out."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDER_THAN_ANY_TABLE = 10_000


@dataclass(frozen=True, slots=True)
class BannerFacts:
    """What the banner says; `rows` are (label, value) in order."""

    title: str
    rows: tuple[tuple[str, str], ...]
    notices: tuple[str, ...] = ()


def megabytes(num_bytes: int) -> str:
    """Bytes as MB or GB, decimal."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def parameter_count(count: int) -> str:
    """Parameters as M or B."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def print_table(table: Table) -> None:
    """As wide as its cells: names and ids are there to be copied, so a narrow terminal wraps lines but cuts no cell."""
    Console(width=_WIDER_THAN_ANY_TABLE).print(table, soft_wrap=True)


def print_banner(facts: BannerFacts, console: Console) -> None:
    """One line a fact, never wrapped by us: a log file gets the same lines as a terminal."""
    console.print(Text(facts.title, style="bold"))
    for label, value in facts.rows:
        console.print(Text.assemble("  ", (f"{label:<13}", "dim"), value), soft_wrap=True)
    for notice in facts.notices:
        console.print(Text(f"  note: {notice}", style="yellow"), soft_wrap=True)
