"""Numbers as rich tables and lines."""

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from dekag.evaluation.table import Table, Tabular
from dekag.tasks.sweep import Summary
from dekag.tasks.sweep.summary import LOW_SNR_DB

WIDEST = 10_000
"""Columns that no table needs."""


def print_tables(result: Tabular) -> None:
    """The tables of a result on standard output; row by row, a line each number, if the terminal is too narrow.

    A pipe or a file has no width and gets whole tables, unless COLUMNS says how wide it is.
    """
    for table in result.tables():
        shown, console = rich_table(table), Console()
        wide = console.measure(shown, options=console.options.update(width=WIDEST)).maximum
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = max(wide, console.width)
        if wide <= console.width:
            console.print(shown)
        else:
            print("\n".join(row_lines(table)))


def row_lines(table: Table) -> list[str]:
    """A table as lines: the name of each row, and below it what its columns say."""
    lines = [table.title]
    for section in table.sections:
        for name, cells in section.items():
            numbers = zip(table.headings[1:], cells, strict=False)
            lines += [name, *(f"  {heading} {cell.text}" for heading, cell in numbers if cell is not None)]
    return [*lines, table.caption] if table.caption else lines


def rich_table(table: Table) -> RichTable:
    """A table for a terminal: names to the left, numbers to the right."""
    shown = RichTable(title=table.title, caption=table.caption or None)
    for number, heading in enumerate(table.headings):
        shown.add_column(heading, justify="right" if number else "left")
    for section in table.sections:
        for name, cells in section.items():
            shown.add_row(name, *("" if cell is None else cell.text for cell in cells))
        shown.add_section()
    return shown


def sweep_lines(summary: Summary) -> list[str]:
    """Worst cells, what arrived of the digital methods, and the duels below 10 dB, a line each."""
    lines = []
    for label, method in summary.methods.items():
        if method.gains is not None:
            cell, gain_db = method.gains.worst
            lines.append(f"{label}: least gain over no_ka {gain_db:+.2f} dB, at {cell}")
        if method.received is not None:
            sent, arrived, images = method.received
            lines.append(
                f"{label}: {arrived} of {sent} sent images arrived, {images - sent} could not be sent;"
                f" nothing can be sent in {method.silent} cells"
            )
    for duel in summary.duels:
        share = f"{duel.won} of {duel.cells} cells below {LOW_SNR_DB:g} dB"
        lines.append(f"{duel.method} beats {duel.rival} in {share} ({100 * duel.won / duel.cells:.0f} %)")
        lines += [f"  behind by {-loss:.2f} dB at {cell}" for cell, loss in duel.losses.items()]
    return lines


def world_lines(described: Mapping[str, Any]) -> list[str]:
    """What a world has and lacks, a line each."""
    rows = {
        "world": described["world"],
        "folder": described["folder"],
        "licence": described["licence"],
        "pictures": f"{described['pixels']} pixels, latents {described['latents']}",
        "edge": described["edge"],
        "cloud": described["cloud"],
        "codec": described["codec"],
        "updates": ", ".join(f"{kind}: {source}" for kind, source in described["updates"].items()),
        "judges": ", ".join(f"{name}: {source}" for name, source in described["judges"].items()),
        "prompts": ", ".join(f"{split} {count}" for split, count in described["prompts"].items()),
        "reported": ", ".join(described["reported"]),
        "methods": ", ".join(described["methods"]),
    }
    lines = [f"{name:<9} {value}" for name, value in rows.items() if value]
    return lines + [f"lacks     {part}: {remedy}" for part, remedy in described["lacks"].items()]
