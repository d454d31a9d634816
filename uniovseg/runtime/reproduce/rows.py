"""Rows of a table: our figures beside the paper's, and how they are shown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from uniovseg.runtime.reproduce.paper import VERSIONS, paper_datasets, paper_figures, paper_value

Row = dict[str, Any]
"""A figure of ours beside the paper's: table, method, dataset, metric, ours, v1, v2, minus_v1, minus_v2, missing. Fractions; seconds where the metric is."""

ALSO = " | "
"""Between the reasons why one row is missing."""


def rows_of(table: str, method: str, dataset: str, figures: Mapping[str, float | None], missing: str = "") -> list[Row]:
    """One row a metric: the figure, the paper's of each version, and ours minus theirs; None where there is none."""
    rows = []
    for metric, ours in figures.items():
        theirs = {version: paper_value(table, method, dataset, metric, version) for version in VERSIONS}
        minus = {f"minus_{version}": None if ours is None or value is None else ours - value for version, value in theirs.items()}
        rows.append({"table": table, "method": method, "dataset": dataset, "metric": metric, "ours": ours} | theirs | minus | {"missing": missing})
    return rows


def show_rows(console: Console, title: str, rows: Sequence[Row]) -> None:
    """The rows as a table, percentages with one digit, then what is missing and why, each reason once."""
    columns = ("row", "data set", "metric", "ours", "paper v1", "ours - v1", "paper v2", "ours - v2")
    table = Table(*columns, title=title)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        shown = [in_print(row[key], row["metric"], signed=key.startswith("minus")) for key in ("v1", "minus_v1", "v2", "minus_v2")]
        ours = "missing" if row["missing"] else in_print(row["ours"], row["metric"])
        table.add_row(row["method"], row["dataset"], row["metric"], ours, *shown)
    console.print(table)
    show_missing(console, {f"{row['method']} on {row['dataset']}": row["missing"] for row in rows if row["missing"]})


def show_missing(console: Console, reasons: Mapping[str, str]) -> None:
    """What could not run and why, each reason once with all that it stops; `reasons` are joined by `ALSO`."""
    stopped: dict[str, list[str]] = {}
    for name, missing in reasons.items():
        for reason in missing.split(ALSO):
            stopped.setdefault(reason, []).append(name)
    for reason, names in stopped.items():
        console.print(f"[bold]missing[/bold] for {', '.join(names)}: ", end="", soft_wrap=True, highlight=False)
        console.print(reason, soft_wrap=True, markup=False, highlight=False)


def in_print(value: float | None, metric: str = "", *, signed: bool = False) -> str:
    """A fraction as a percentage with one digit, seconds with two, nothing as a dash."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value:{sign}.2f} s" if metric == "seconds" else f"{100 * value:{sign}.1f}"


def show_paper(console: Console, table: str, metric: str) -> None:
    """The paper's own table for one metric, of all methods it lists: the longer side down."""
    figures = [item for item in paper_figures() if item.table == table and item.metric == metric]
    values = {(_label(item.method, item.version), item.dataset): item.value for item in figures}
    methods = list(dict.fromkeys(method for method, _ in values))
    datasets = [name for name in paper_datasets(table) if any(dataset == name for _, dataset in values)]
    transposed = len(datasets) > len(methods)
    down, across = (datasets, methods) if transposed else (methods, datasets)
    printed = Table("", *across, title=f"the paper's table {table}: {metric}, %")
    for name in down:
        printed.add_row(name, *(in_print(values.get((other, name) if transposed else (name, other))) for other in across))
    console.print(printed)


def _label(method: str, version: str) -> str:
    return method if version == "v1" else f"{method} {version}"


def wide_console() -> Console:
    """The terminal; where the output is no terminal, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def mean_and_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of the values there are; None where there are too few."""
    present = [value for value in values if value is not None]
    if not present:
        return None, None
    mean = sum(present) / len(present)
    if len(present) < 2:
        return mean, None
    return mean, (sum((value - mean) ** 2 for value in present) / (len(present) - 1)) ** 0.5
