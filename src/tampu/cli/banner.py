"""The start-up banner: which weights answer, on what, with how much room. Facts in, lines out."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


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


def print_banner(facts: BannerFacts, console: Console) -> None:
    """Write the banner; plain text when the console is not a terminal."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts.rows:
        table.add_row(label, value)
    console.print(f"[bold]{facts.title}[/bold]")
    console.print(table)
    for notice in facts.notices:
        console.print(f"  note: {notice}", style="yellow", markup=False)
