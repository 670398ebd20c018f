"""Numbers in rows and columns: for a terminal, as CSV and as LaTeX. Every number is formatted here and only once."""

import csv
import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dekag.evaluation.statistics import Mean

COLUMNS = ("table", "row", "column", "value", "low", "high", "n")
"""Of a CSV, in which every cell is a line."""
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}


@dataclass(frozen=True)
class Cell:
    """An estimate with its interval, a number or a text; `digits` stand behind the point of what is not whole."""

    value: Mean | float | int | str
    digits: int = 3

    @property
    def number(self) -> str:
        """The estimate, number or text alone, as `0.512`."""
        value = self.value.mean if isinstance(self.value, Mean) else self.value
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)

    @property
    def interval(self) -> str:
        """`[0.498, 0.526]` of an estimate, nothing of anything else."""
        if not isinstance(self.value, Mean):
            return ""
        return f"[{self.value.low:.{self.digits}f}, {self.value.high:.{self.digits}f}]"

    @property
    def text(self) -> str:
        """`0.512 [0.498, 0.526]`."""
        return f"{self.number} {self.interval}".rstrip()

    @property
    def latex(self) -> str:
        """Numbers in mathematics, the interval in a smaller size."""
        if isinstance(self.value, str):
            return latex_text(self.value)
        interval = f" {{\\scriptsize ${_infinite(self.interval)}$}}" if self.interval else ""
        return f"${_infinite(self.number)}${interval}"

    @property
    def fields(self) -> tuple[str, str, str, str]:
        """Value, ends of the interval and n with all their digits; what there is not, or is infinite, is empty."""
        if not isinstance(self.value, Mean):
            return str(self.value), "", "", ""
        low, high = (repr(end) if math.isfinite(end) else "" for end in (self.value.low, self.value.high))
        return repr(self.value.mean), low, high, str(self.value.n)


Cells = Sequence[Cell | None]
"""None is an empty place."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below headings, of which the first is that of the rows' names.

    sections: rows by name, in groups with a rule between them.
    """

    title: str
    headings: tuple[str, ...]
    sections: tuple[Mapping[str, Cells], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for name, cells in self.rows():
            assert len(cells) == len(self.headings) - 1, f"{name} has {len(cells)} cells"

    def rows(self) -> Iterator[tuple[str, Cells]]:
        """Every row with its name."""
        for section in self.sections:
            yield from section.items()

    def lines(self) -> Iterator[tuple[str, ...]]:
        """A line of COLUMNS for every cell."""
        for name, cells in self.rows():
            for heading, cell in zip(self.headings[1:], cells, strict=True):
                if cell is not None:
                    yield (self.title, name, heading, *cell.fields)

    def to_latex(self) -> str:
        """A tabular of the package booktabs, the title above it and the caption below it as comments."""
        sections = [
            [
                " & ".join([latex_text(name), *("" if cell is None else cell.latex for cell in cells)])
                for name, cells in section.items()
            ]
            for section in self.sections
            if section
        ]
        lines = [
            f"% {self.title}",
            f"\\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}",
            "\\toprule",
            f"{' & '.join(map(latex_text, self.headings))} \\\\",
        ]
        for section in sections:
            lines += ["\\midrule", *(f"{row} \\\\" for row in section)]
        lines += ["\\bottomrule", "\\end{tabular}", *([f"% {self.caption}"] if self.caption else [])]
        return "\n".join(lines) + "\n"


class Tabular(ABC):
    """A result that can be shown as tables."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The result as tables."""

    def to_csv(self) -> str:
        """One CSV of all tables with a line for every cell and the columns of COLUMNS, numbers in full."""
        return to_csv(self.tables())

    def to_latex(self) -> str:
        """A tabular of the package booktabs for each table."""
        return "\n".join(table.to_latex() for table in self.tables())


def to_csv(tables: Iterable[Table]) -> str:
    """One CSV of some tables, a line for every cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        writer.writerows(table.lines())
    return text.getvalue()


def latex_text(text: str) -> str:
    """A text in which nothing means anything to LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _infinite(number: str) -> str:
    return re.sub(r"\binf\b", r"\\infty", number)
