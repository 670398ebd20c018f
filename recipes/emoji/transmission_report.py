"""Tables of what `transmission.py` measured, in Markdown: `python recipes/emoji/transmission_report.py --run RUN`.

`--write` puts them into README.md and docs/transmission.md, between the comments that name this script. Every interval
is of 95 % over pictures; differences are paired by picture. Nothing in it is typed by hand.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dekag.evaluation.statistics import Mean, mean_interval

Cell = tuple[str, int, float]
"""Channel, uses, SNR in dB."""
Values = NDArray[np.float64]

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- transmission_report.py -->", "<!-- end of transmission_report.py -->"
SHIPPED = "cala@long"
NAMES = {
    "blind": "A: blind pair",
    "source": "B: codec of the unaligned edge",
    "no_ka": "C: physics complete",
    "linear": "linear code, nothing trained",
    SHIPPED: "**CALA, as it ships**",
    "full@long": "all weights, as long",
}
OTHERS = {
    "cala": "CALA",
    "shared_lora": "one shared LoRA of equal bytes in every module (as TOAST)",
    "full": "all weights",
    "hard_gate": "hard gate",
    "snr_groups": "groups by SNR",
    "snr_attention": "SNR attention",
    "scaling": "scaling only (as Hyper-AJSCC)",
    "appended": "appended condition only (as MambaJSCC)",
    "content_gate": "a gate that sees the content",
}
LEAST_DB = 0.1
"""A lead that is smaller pays for nothing."""
DIGITAL = ("digital", "jpeg", "webp", "avif")
DRAWN = ("aligned", "unaligned", "prior", "food")
JUDGES = {"dino": "mini-dino", "clip": "mini-clip", "imagenet": "EfficientNet"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """The results of a sweep, by method, metric and cell."""

    folder: Path

    @cached_property
    def values(self) -> dict[tuple[str, str], dict[Cell, Values]]:
        """Every picture's value."""
        parquet = importlib.import_module("pyarrow.parquet")
        names = ["method", "metric", "channel", "uses", "snr_db", "image", "value"]
        columns = parquet.read_table(self.folder / "results.parquet", columns=names).to_pydict()
        found: dict[tuple[str, str], dict[Cell, list[float]]] = {}
        for method, metric, *cell, _, value in zip(*columns.values(), strict=True):
            found.setdefault((method, metric), {}).setdefault(tuple(cell), []).append(value)
        return {key: {c: np.array(v) for c, v in cells.items()} for key, cells in found.items()}

    @cached_property
    def bounds(self) -> dict[Cell, dict[str, float]]:
        """The lines of the Gaussian reference."""
        rows = map(json.loads, (self.folder / "results.jsonl").read_text().splitlines())
        return {
            (row["channel"], row["uses"], row["snr_db"]): row["weighted_snr_db"]
            for row in rows
            if row["method"] == "bound"
        }

    def methods(self) -> list[str]:
        """Names in the order of the sweep."""
        return list(dict.fromkeys(method for method, metric in self.values if metric == "psnr_db"))

    def table(self, method: str, metric: str = "psnr_db", cells: Iterable[Cell] | None = None) -> Values:
        """[cells, pictures]."""
        found = self.values[method, metric]
        return np.stack([found[cell] for cell in (found if cells is None else cells)])

    def mean(self, method: str, metric: str = "psnr_db") -> Mean:
        """Over cells and pictures, by picture."""
        return mean_interval(self.table(method, metric).mean(0))

    def lead(self, one: Sequence[str], other: Sequence[str], cells: Iterable[Cell] | None = None) -> Mean:
        """How far the mean of some methods is above that of others, paired by picture."""
        cells = None if cells is None else list(cells)
        first, second = (
            np.mean([self.table(m, cells=cells) for m in names], axis=0) for names in (one, other)
        )
        return mean_interval((first - second).mean(0))


def text(mean: Mean, digits: int = 2) -> str:
    return f"{mean.mean:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def rows(lines: Iterable[Sequence[object]]) -> str:
    heading, *others = [[str(each) for each in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heading, ["---"] * len(heading), *others])


def seeds_of(found: Sweep, method: str) -> list[str]:
    return [name for name in found.methods() if name.rpartition("-")[0] == method]


def means(found: Sweep) -> str:
    """PSNR of every method, over the grid and by SNR."""
    snrs = sorted({cell[2] for cell in found.values["no_ka", "psnr_db"]})

    def line(label: str, methods: Sequence[str]) -> list[str]:
        table = np.mean([found.table(method) for method in methods], axis=0)
        cells = list(found.values[methods[0], "psnr_db"])
        by_snr = [table[[cell[2] == snr for cell in cells]].mean() for snr in snrs]
        worst = (table.mean(1) - found.table("no_ka", cells=cells).mean(1)).min()
        return [label, text(mean_interval(table.mean(0))), *(f"{v:.2f}" for v in by_snr), f"{worst:+.2f}"]

    named = [line(label, [name]) for name, label in NAMES.items()]
    compared = [
        line(f"{label} ({len(seeds)} seed{'s' * (len(seeds) > 1)})", seeds)
        for name, label in OTHERS.items()
        if (seeds := seeds_of(found, name))
    ]
    digital = [line(name, [name]) for name in DIGITAL if name in found.methods()]
    heading = ["PSNR, dB", "mean", *(f"{snr:g} dB" for snr in snrs), "worst cell over C"]
    return rows([heading, *named, *compared, *digital])


def leads(found: Sweep) -> str:
    """What CALA gains over everything, by channel."""
    channels = list(dict.fromkeys(cell[0] for cell in found.values["no_ka", "psnr_db"]))

    def line(label: str, ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
        cells = found.values[ours[0], "psnr_db"]
        by = [found.lead(ours, theirs, [c for c in cells if c[0] == channel]) for channel in channels]
        return [label, text(found.lead(ours, theirs)), *(f"{mean.mean:+.2f}" for mean in by)]

    shipped = [line(label, [SHIPPED], [name]) for name, label in NAMES.items() if name != SHIPPED]
    shipped += [line(name, [SHIPPED], [name]) for name in DIGITAL if name in found.methods()]
    ours = seeds_of(found, "cala")
    equal = [
        line(f"{label}, equal steps", ours, seeds)
        for name, label in OTHERS.items()
        if name != "cala" and (seeds := seeds_of(found, name))
    ]
    return rows([["CALA's lead over, dB", "mean", *channels], *shipped, *equal])


def verdict(found: Sweep) -> str:
    """Whether the gate pays, in words, and where CALA is below the linear code."""
    lead = found.lead(seeds_of(found, "cala"), seeds_of(found, "shared_lora"))
    pays = "pays" if lead.low > 0 and lead.mean >= LEAST_DB else "does not pay"
    below = [
        cell
        for cell in found.values[SHIPPED, "psnr_db"]
        if found.lead([SHIPPED], ["linear"], [cell]).high < 0
    ]
    where = ", ".join(f"{channel} {uses} uses {snr:g} dB" for channel, uses, snr in below) or "none"
    return (
        f"**The gate {pays}** on this grid: CALA leads one shared LoRA of equal bytes by {text(lead)} dB."
        f" Conditions where CALA is below the linear code by more than its interval: {where}."
    )


def silences(found: Sweep) -> str:
    """Conditions in which a digital way sends nothing."""
    lines = []
    for method in DIGITAL:
        cells = [cell for cell, sent in found.values[method, "sent"].items() if not sent.any()]
        named = "; ".join(f"{channel} {uses} uses {snr:g} dB" for channel, uses, snr in cells)
        lines.append([method, len(cells), named])
    return rows([["sends nothing", "conditions", "which"], *lines])


def gate(found: Sweep) -> str:
    """CALA over one shared LoRA, by rate and SNR."""
    ours, theirs = seeds_of(found, "cala"), seeds_of(found, "shared_lora")
    cells = list(found.values[ours[0], "psnr_db"])
    uses, snrs = (sorted({cell[place] for cell in cells}) for place in (1, 2))
    lines = [
        [f"{count} uses"]
        + [
            f"{found.lead(ours, theirs, [c for c in cells if c[1:] == (count, snr)]).mean:+.2f}"
            for snr in snrs
        ]
        for count in uses
    ]
    return rows([["CALA over the shared LoRA, dB", *(f"{snr:g} dB" for snr in snrs)], *lines])


def distances(found: Sweep) -> str:
    """How far below the held-out Gaussian reference over AWGN."""
    methods = ["linear", "no_ka", SHIPPED, "full@long"]
    cells = [cell for cell in found.values[SHIPPED, "psnr_db"] if cell[0] == "awgn"]
    snrs = sorted({cell[2] for cell in cells})

    def level(method: str, cell: Cell) -> float:
        error = 10 ** (-found.values[method, "weighted_snr_db"][cell] / 10)
        return float(-10 * np.log10(error.mean()))

    def line(label: str, to: str, of: str) -> list[str]:
        by = [np.mean([found.bounds[c][to] - level(of, c) for c in cells if c[2] == snr]) for snr in snrs]
        return [label, *(f"{value:.2f}" for value in by)]

    kinds = {
        "held_out": "held-out",
        "informed": "measured",
        "dispersed": "with blocks so short",
        "finite": "256-QAM",
    }
    lines = [line(NAMES[method], "held_out", method) for method in methods]
    lines += [
        line(f"{NAMES[SHIPPED]}, below the {label} line", kind, SHIPPED) for kind, label in kinds.items()
    ]
    return rows([["below the held-out reference, dB", *(f"{snr:g} dB" for snr in snrs)], *lines])


def duels(found: Sweep) -> str:
    """CALA against the digital way, cell by cell."""
    cells = list(found.values[SHIPPED, "psnr_db"])
    places = list(dict.fromkeys(cell[:2] for cell in cells))
    snrs = sorted({cell[2] for cell in cells})
    silent = sum(not sent.any() for sent in found.values["digital", "sent"].values())
    wins = [found.lead([SHIPPED], ["digital"], [cell]).mean > 0 for cell in cells]
    lines = [
        [f"{channel}, {uses} uses"]
        + [f"{found.lead([SHIPPED], ['digital'], [(channel, uses, snr)]).mean:+.2f}" for snr in snrs]
        for channel, uses in places
    ]
    table = rows([["CALA over digital, dB", *(f"{snr:g} dB" for snr in snrs)], *lines])
    return f"{table}\n\nCALA ahead in {sum(wins)} of {len(cells)} cells; digital silent in {silent}."


def contents(run: Path) -> str:
    """What judges see: cosines of received and drawn pictures."""
    found = Sweep(folder=run / "table-content")
    judges = {name: label for name, label in JUDGES.items() if (SHIPPED, name) in found.values}
    methods = [name for name in (*NAMES, *DIGITAL) if name in found.methods()]
    lines = [
        [NAMES.get(method, method), *(text(found.mean(method, name), 3) for name in judges)]
        for method in methods
    ]
    return rows([["consistency of received and drawn", *judges.values()], *lines])


def knowledge(run: Path) -> str:
    """Channels of which less is known than all, 256 uses."""
    found = Sweep(folder=run / "table-knowledge")
    cells = list(found.values[SHIPPED, "psnr_db"])
    snrs = sorted({cell[2] for cell in cells})
    lines = [
        [channel]
        + [
            " / ".join(
                f"{found.table(m, cells=[(channel, 256, snr)]).mean():.2f}"
                for m in ("linear", "no_ka", SHIPPED)
            )
            for snr in snrs
        ]
        for channel in dict.fromkeys(cell[0] for cell in cells)
    ]
    table = rows([["PSNR of linear / C / CALA, dB", *(f"{snr:g} dB" for snr in snrs)], *lines])
    believed = (
        "SNRs are those that both ends believe: taken for +3 dB, the true one is 3 dB lower."
        " `estimated` has Rayleigh gains from pilots, tdl-c OFDM with pilots; both pay for them out of 256 uses."
    )
    return f"{table}\n\n{believed}"


def sources(run: Path) -> str:
    """What CALA gains where the codec stayed behind the source."""
    other, domain = Sweep(folder=run / "table-source"), Sweep(folder=run / "table-food")
    lines: list[Sequence[object]] = [
        ["trained for another source", "gain over its codec, dB", "bytes", "minutes"]
    ]
    for found, label, name in (
        (other, "CALA over B", "cala@source"),
        (other, "all weights over B", "full@source"),
        (domain, "CALA of the domain, over C", "cala@food"),
        (domain, "the world's CALA at equal steps, over C", "cala-0"),
        (domain, "CALA as it ships, over C", SHIPPED),
    ):
        size = sum(path.stat().st_size for path in (run / name).iterdir())
        minutes = json.loads((run / f"{name}.json").read_text())["core_seconds"] / 60
        lines.append([label, text(found.lead([name], ["no_ka"])), size, f"{minutes:.0f}"])
    return rows(lines)


def wide(run: Path) -> str:
    """The 120 conditions of the held-out grid."""
    found = Sweep(folder=run / "table-grid")
    some = found.values["no_ka", "psnr_db"]
    lines = [
        [label, text(found.mean(name)), text(found.lead([SHIPPED], [name]))]
        for name, label in (*NAMES.items(), ("digital", "digital"))
        if name in found.methods()
    ]
    return rows([[f"PSNR over {len(some)} conditions, dB", "mean", "CALA's lead"], *lines])


def times(run: Path) -> str:
    """Minutes of one core, by stage."""
    spent = {path.stem: json.loads(path.read_text())["core_seconds"] / 60 for path in run.glob("*.json")}
    drawn = sum(spent.get(name, 0.0) for name in DRAWN)
    tables = sum(minutes for name, minutes in spent.items() if name.startswith("table"))
    heading = ["minutes of one core", "latents drawn", "trainings", "tables", "all"]
    both = [drawn, sum(spent.values()) - drawn - tables, tables, sum(spent.values())]
    return rows([heading, ["", *(f"{minutes:.0f}" if minutes > 1 else "not timed" for minutes in both)]])


def trainings(run: Path) -> str:
    """Time and validation of the codecs."""
    lines: list[Sequence[object]] = [
        ["trained at one condition", "validation by step, dB", "minutes of one core"]
    ]
    for path in sorted(run.glob("*.[0-9].json")):
        told = json.loads(path.read_text())
        if told["scores"]:
            picked = told["scores"][:: max(1, len(told["scores"]) // 6)] + told["scores"][-1:]
            scores = ", ".join(f"{step}: {score:.2f}" for step, score in picked)
            lines.append([path.stem, scores, f"{told['core_seconds'] / 60:.0f}"])
    return rows(lines)


FURTHER: tuple[tuple[tuple[str, ...], Callable[[Path], str]], ...] = (
    (("table-grid",), wide),
    (("table-content",), contents),
    (("table-knowledge",), knowledge),
    (("table-source", "table-food"), sources),
)
"""Tables of sweeps of their own, and the sweeps that each needs."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="into README.md and docs/transmission.md")
    options = parser.parse_args()
    found = Sweep(folder=options.run / "table")
    some = found.values["no_ka", "psnr_db"]
    first = [
        f"{len(next(iter(some.values())))} held-out pictures, {len(some)} conditions, 256-QAM.",
        means(found),
        leads(found),
        verdict(found),
    ]
    further = [gate(found), distances(found), duels(found), silences(found)]
    for needed, table in FURTHER:
        if all((options.run / name / "results.parquet").exists() for name in needed):
            further.append(table(options.run))
        else:
            print(f"left out, not measured yet: {', '.join(needed)}", file=sys.stderr)
    further += [trainings(options.run), times(options.run)]
    whole = "\n\n".join([*first, *further])
    print(whole)
    if options.write:
        put(ROOT / "README.md", "\n\n".join(first))
        put(ROOT / "docs" / "transmission.md", whole)


def put(path: Path, tables: str) -> None:
    """Replace what is between the two comments."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
