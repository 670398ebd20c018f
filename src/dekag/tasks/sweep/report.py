"""Everything that a finished sweep leaves: results, summary and figures."""

import warnings
from pathlib import Path

from dekag.tasks.sweep.figures import write_figures
from dekag.tasks.sweep.results import Outcome, write_results
from dekag.tasks.sweep.summary import Summary, summarise
from dekag.wire.files import write_json


def write(outcome: Outcome, folder: Path) -> tuple[Summary, list[Path]]:
    """Write all files; returns the summary and the files. Warns if pyarrow is not there for the table."""
    summary = summarise(outcome)
    written = write_results(outcome, folder)
    if not any(path.suffix == ".parquet" for path in written):
        text = "results.parquet needs pyarrow: pip install 'dekag[tables]' and start again to have it written"
        warnings.warn(text, stacklevel=1)
    write_json(folder / "summary.json", summary.to_json())
    return summary, [*written, folder / "summary.json", *write_figures(outcome, folder)]
