"""The figures of the paper's tables, from ``paper.csv``: one a line, with what it is of.

``version`` is the paper's: v1 (arXiv 2402.08960v1), or v2, of which only the abstract's figures are known. Those of the table ``promptable`` were read
off pictures (the SegInW ones to about 0.1). Data sets have the names of `uniovseg.data.benchmarks` and `uniovseg.data.promptable_sets`.
"""

import csv
import functools
from dataclasses import dataclass
from importlib import resources

OURS = "Uni-OVSeg"
"""The paper's own method, in `PaperFigure.method`; in tables 3 and 4 the methods are its steps and its input sizes."""

VERSIONS = ("v1", "v2")


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """One figure of a table.

    Attributes:
        table: 1, 2, 3, 4 or promptable.
        method: whose; the row of the table.
        trained_on: the method's training data, where the table says it.
        version: of the paper.
        dataset: what it was measured on; empty for the seconds of table 4, which are of both sets.
        metric: miou, pq, sq, rq, accuracy, point_iou, box_iou: fractions; seconds: an image.
        value: the figure.
    """

    table: str
    method: str
    trained_on: str
    version: str
    dataset: str
    metric: str
    value: float


@functools.cache
def paper_figures() -> tuple[PaperFigure, ...]:
    """All figures, in the order of the file."""
    text = resources.files(__package__ or "").joinpath("paper.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    scales = {"percent": 100.0, "s": 1.0}
    return tuple(
        PaperFigure(**{name: row[name] for name in row if name not in ("value", "unit")}, value=float(row["value"]) / scales[row["unit"]])
        for row in rows
    )


def paper_value(table: str, method: str, dataset: str, metric: str, version: str) -> float | None:
    """A figure, or None where the paper gives none."""
    wanted = (table, method, version, metric)
    for item in paper_figures():
        if (item.table, item.method, item.version, item.metric) == wanted and item.dataset in (dataset, ""):
            return item.value
    return None


def paper_datasets(table: str, method: str = OURS) -> list[str]:
    """The data sets on which a table has figures of a method, in the paper's order."""
    return list(dict.fromkeys(item.dataset for item in paper_figures() if (item.table, item.method) == (table, method) and item.dataset))
