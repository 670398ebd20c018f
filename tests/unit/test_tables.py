"""Results as tables: every number formatted once, whole in a CSV, and LaTeX that nothing in a name can break."""

import csv
import io
import math
import re

import pytest
from matplotlib.mathtext import MathTextParser

from dekag.cli.tables import rich_table
from dekag.evaluation.generation import GenerationScores
from dekag.evaluation.statistics import Mean
from dekag.evaluation.table import COLUMNS, Cell, Table, to_csv
from dekag.evaluation.transmission import TransmissionScores
from dekag.tasks.compare import Report
from dekag.tasks.sweep import Summary
from dekag.tasks.sweep.summary import Gains, Gap, MethodSummary

ESTIMATE = Mean(mean=0.76154, low=0.7229, high=0.8002, n=96)
UNBOUNDED = Mean(mean=1.5, low=-math.inf, high=math.inf, n=1)


def some(mean: float) -> Mean:
    return Mean(mean=float(mean), low=mean - 1.0, high=mean + 1.0, n=4)


def scores(ceiling: bool = True) -> GenerationScores:
    """Of two methods under two judges."""
    methods = {
        "makd": 0.7,
        "my_method": 0.6,
        "no_ka": 0.4,
        "floor": 0.0,
        **({"ceiling": 0.9} if ceiling else {}),
    }
    return GenerationScores(
        consistency={method: {"dino": some(mean), "clip": some(mean)} for method, mean in methods.items()},
        gain_percent={"makd": some(50), "my_method": some(20)},
        gap_closed={"makd": some(0.6), "my_method": some(0.4)} if ceiling else {},
    )


def report(ceiling: bool = True) -> Report:
    return Report(
        world="mine",
        scores={"own": {"heldout": scores(ceiling)}},
        update_bytes={"no_ka": 0, "makd": 1234, "my_method": 99},
        edge_bytes=None,
    )


def sent() -> TransmissionScores:
    return TransmissionScores(
        by_condition={"awgn 256 uses 0 dB": {"no_ka": some(21), "cala": some(24)}},
        overall={"no_ka": some(22), "cala": some(25)},
        gain_db={"cala": some(3)},
    )


def swept() -> Summary:
    gains = Gains(
        overall=some(3),
        by_split={"heldout": some(3)},
        by_family={"awgn": some(3)},
        by_uses={"64": some(3)},
        worst=("awgn 64 uses 0 dB", 1.0),
    )
    usual = {"metrics": {"psnr_db": some(24), "ssim": some(0.8)}, "received": None, "silent": 0}
    gap = Gap(measured_db=2.5, held_out_db=1.5)
    return Summary(
        world="mine",
        images=4,
        cells=2,
        draws=8,
        methods={
            "no_ka": MethodSummary(gains=None, to_bound={"0": gap}, **usual),
            "cala": MethodSummary(gains=gains, to_bound={"0": gap}, **usual),
        },
        duels=[],
    )


RESULTS = {"report": report(), "without a ceiling": report(ceiling=False), "sent": sent(), "swept": swept()}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_cell_is_formatted_in_one_way() -> None:
    assert Cell(ESTIMATE).text == "0.762 [0.723, 0.800]"
    assert Cell(ESTIMATE, 1).text == "0.8 [0.7, 0.8]"
    assert Cell(ESTIMATE).latex == r"$0.762$ {\scriptsize $[0.723, 0.800]$}"
    assert Cell(UNBOUNDED, 1).text == "1.5 [-inf, inf]"
    assert Cell(UNBOUNDED, 1).latex == r"$1.5$ {\scriptsize $[-\infty, \infty]$}"
    assert (Cell(454942).text, Cell(43.4, 0).text, Cell("own").text) == ("454942", "43", "own")


def test_a_csv_has_all_digits_and_leaves_infinite_ends_out() -> None:
    table = Table(
        title="one, two", headings=("", "a", "b"), sections=({"row": [Cell(ESTIMATE, 1), Cell(UNBOUNDED)]},)
    )
    first, second = rows_of(to_csv([table]))
    assert tuple(first) == COLUMNS
    assert (first["table"], first["row"], first["column"]) == ("one, two", "row", "a")
    assert Mean(
        mean=float(first["value"]), low=float(first["low"]), high=float(first["high"]), n=int(first["n"])
    ) == (ESTIMATE)
    assert (second["value"], second["low"], second["high"], second["n"]) == ("1.5", "", "", "1")


@pytest.mark.parametrize("name", RESULTS)
def test_a_csv_has_a_line_for_every_cell(name: str) -> None:
    result = RESULTS[name]
    cells = sum(cell is not None for table in result.tables() for _, row in table.rows() for cell in row)
    rows = rows_of(result.to_csv())
    assert len(rows) == cells > 0
    assert len({(row["table"], row["row"], row["column"]) for row in rows}) == cells


@pytest.mark.parametrize("name", RESULTS)
def test_latex_has_as_many_columns_as_headings_and_readable_mathematics(name: str) -> None:
    """Ampersands are counted, and every piece between dollars is read by another reader of TeX's mathematics."""
    text = RESULTS[name].to_latex()
    tabulars = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert len(tabulars) == len(RESULTS[name].tables())
    parser = MathTextParser("path")
    for columns, body in tabulars:
        assert [rule for rule in ("toprule", "midrule", "bottomrule") if f"\\{rule}" in body] == [
            "toprule",
            "midrule",
            "bottomrule",
        ]
        for line in body.splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        for piece in re.findall(r"(?<!\\)\$[^$]*(?<!\\)\$", body):
            parser.parse(piece)


def test_names_cannot_break_latex() -> None:
    table = Table(
        title="t", headings=("", "a & b"), sections=({r"50 % of $x_1$ \input{y} ~^#": [Cell("m_1")]},)
    )
    (line,) = (line for line in table.to_latex().splitlines() if line.startswith("50"))
    assert line == (
        r"50 \% of \$x\_1\$ \textbackslash{}input\{y\} \textasciitilde{}\textasciicircum{}\# & m\_1 \\"
    )


def test_the_report_orders_methods_and_leaves_out_what_needs_a_ceiling() -> None:
    (table,) = report().tables()
    assert table.headings == ("", "dino", "clip", "gain %", "gap closed", "bytes")
    assert [name for name, _ in table.rows()] == [
        *("floor (other prompts)", "edge without KA", "MAKD as shipped"),
        *("ceiling (cloud, other seed)", "my_method"),
    ]
    found = {(row["row"], row["column"]): row["value"] for row in rows_of(report(ceiling=False).to_csv())}
    assert found["MAKD as shipped", "bytes"] == "1234"
    assert ("MAKD as shipped", "gap closed") not in found
    assert ("edge without KA", "gain %") not in found


def test_json_of_a_transmission_is_by_codec_with_one_gain() -> None:
    values = sent().to_json()
    assert values.keys() == {"no_ka", "cala", "gain_db"}
    assert values["gain_db"] == some(3).to_json()
    assert values["cala"]["by_condition"] == {"awgn 256 uses 0 dB": some(24).to_json()}


def test_a_terminal_shows_the_same_numbers() -> None:
    (table,) = sent().tables()
    shown = rich_table(table)
    assert [column.header for column in shown.columns] == list(table.headings)
    texts = [list(column.cells) for column in shown.columns]
    assert texts[0] == [name for name, _ in table.rows()]
    assert texts[2] == ["24.00 [23.00, 25.00]", "25.00 [24.00, 26.00]"]
    assert shown.caption == "gain 3.00 [2.00, 4.00] dB"
