"""Runs side by side: the parameters that differ, the final metrics, and the curves over steps, on the terminal, as PNG and as one HTML page.

A run is found in MLflow by its id or name, or read from the folder that a job or training left (report.json, metrics.jsonl, config.yaml or the
configuration in its checkpoint). One run alone that others belong to, such as a sweep, stands for those.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import yaml
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console
from rich.table import Table

from uniovseg import checkpoint, storage
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import Config, flatten_values
from uniovseg.errors import DataError, MissingFileError, StorageError
from uniovseg.runtime.delivery import connect, said, without_credentials
from uniovseg.runtime.tracking import PARENT, TrackingConfig, numbers
from uniovseg.storage import Location

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun
    from mlflow.tracking import MlflowClient

Curve = list[tuple[int, float]]

MOST_CURVES = 24
"""Metrics that are drawn; the page says how many more there are."""

SYSTEM = "system/"
"""How the names of figures about the machine begin, which are not compared."""


class CompareConfig(Config):
    """What is compared."""

    runs: tuple[str, ...] = Field(..., min_length=1, description="ids or names of MLflow runs, or folders of jobs; one parent alone: its children")
    output: str = Field("runs/compare", description="folder of compare.html, compare.png and report.json")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow to look in")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is known of one run.

    Attributes:
        name: for people.
        identity: id of an MLflow run, or the folder.
        parameters: by dotted key, as text.
        metrics: last value of each metric.
        curves: (step, value) of the metrics with more than one point, by step.
    """

    name: str
    identity: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, Curve]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs with names of their own, the keys of parameters that differ among them, and all metrics' names."""

    runs: tuple[RunRecord, ...]
    differing: tuple[str, ...]
    metrics: tuple[str, ...]


def read_runs(names: Sequence[str], tracking: TrackingConfig) -> list[RunRecord]:
    """The runs of these names; one parent alone gives its children, in the order they began.

    Raises:
        DataError: a name is neither a folder of a job nor a run.
        StorageError: the tracking server does not answer.
    """
    found: list[RunRecord] = []
    for name in names:
        folder = _folder_record(name)
        found += [folder] if folder else _stored_records(name, tracking, alone=len(names) == 1)
    return found


def _folder_record(name: str) -> RunRecord | None:
    """The record of a job's folder; None where there is neither a report nor a curve."""
    if "/" not in name and not Path(name).is_dir():
        return None
    folder = Location.of(name)
    report, lines = _read(folder / "report.json"), _read(folder / "metrics.jsonl")
    if report is None and lines is None:
        return None
    points: dict[str, Curve] = {}
    for line in map(json.loads, (lines or b"").decode().splitlines()):
        step = int(line.pop("step"))
        for metric, value in line.items():
            points.setdefault(metric, []).append((step, float(value)))
    metrics = {metric: curve[-1][1] for metric, curve in points.items()} | numbers(json.loads(report or b"{}"))
    return RunRecord(folder.name, folder.uri, _folder_parameters(folder), metrics, _curves(points))


def _folder_parameters(folder: Location) -> dict[str, str]:
    if (text := _read(folder / "config.yaml")) is not None:
        return _texts(yaml.safe_load(text))
    if (manifest := _read(folder / "model" / checkpoint.MANIFEST)) is not None:
        return _texts(CheckpointInfo.model_validate_json(manifest).config)
    return {}


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value)[:500] for key, value in flatten_values(values).items()}


def _read(location: Location) -> bytes | None:
    try:
        return storage.read_bytes(location)
    except MissingFileError:
        return None


def _curves(points: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: sorted(curve) for name, curve in points.items() if len(curve) > 1 and not name.startswith(SYSTEM)}


def _stored_records(name: str, tracking: TrackingConfig, *, alone: bool) -> list[RunRecord]:
    from mlflow.exceptions import MlflowException

    uri = tracking.resolve()
    if uri is None:
        raise DataError(
            "no such run", seen=name, allowed="a folder with report.json or metrics.jsonl", fix="or set MLFLOW_TRACKING_URI for MLflow runs"
        )
    client = connect(uri)
    try:
        run = _stored_run(client, name)
        children = _search(client, f"tags.`{PARENT}` = '{run.info.run_id}'") if alone else []
        return [_stored_record(client, item) for item in sorted(children, key=lambda item: item.info.start_time) or [run]]
    except MlflowException as error:
        seen = f"{without_credentials(uri)}: {said(error)}"
        raise StorageError("MLflow cannot be read", seen=seen) from error


def _search(client: "MlflowClient", filter_string: str) -> list["StoredRun"]:
    """All runs of all experiments that a filter finds, newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[StoredRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, filter_string, order_by=["attributes.start_time DESC"], page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _stored_run(client: "MlflowClient", name: str) -> "StoredRun":
    """The run of this id, or the newest of this name."""
    for attribute in ("run_id", "run_name"):
        if "'" not in name and (found := _search(client, f"attributes.{attribute} = '{name}'")):
            return found[0]
    known = ", ".join(dict.fromkeys(str(run.info.run_name) for run in _search(client, "")[:10]))
    raise DataError(
        "no such run", seen=name, allowed=f"a folder with report.json or metrics.jsonl, or an MLflow run, newest first: {known or 'none'}"
    )


def _stored_record(client: "MlflowClient", run: "StoredRun") -> RunRecord:
    metrics = {name: value for name, value in run.data.metrics.items() if not name.startswith(SYSTEM)}
    points = {name: [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, name)] for name in metrics}
    return RunRecord(str(run.info.run_name), str(run.info.run_id), dict(run.data.params), metrics, _curves(points))


IGNORED = ("output", "tracking.")
"""How keys begin that differ between any two runs, or say nothing of what they did."""


def comparison(runs: Sequence[RunRecord]) -> Comparison:
    """Put runs side by side; equal names get a number."""
    names = [run.name for run in runs]
    named = tuple(
        RunRecord(f"{run.name} ({index + 1})" if names.count(run.name) > 1 else run.name, run.identity, run.parameters, run.metrics, run.curves)
        for index, run in enumerate(runs)
    )
    keys = dict.fromkeys(key for run in runs for key in run.parameters if not key.startswith(IGNORED))
    differing = tuple(key for key in keys if len({run.parameters.get(key) for run in runs}) > 1)
    metrics = tuple(sorted({name for run in runs for name in run.metrics}))
    return Comparison(named, differing, metrics)


def compare(config: CompareConfig) -> dict[str, Any]:
    """Print the tables; write compare.html and compare.png (where there are curves); returns the report.

    Raises:
        DataError, StorageError: as `read_runs`.
    """
    found = comparison(read_runs(config.runs, config.tracking))
    output = Location.of(config.output)
    console = Console()
    for table in tables(found):
        console.print(table)
    picture = draw_curves(found)
    if picture:
        storage.write_bytes(output / "compare.png", picture)
    storage.write_bytes(output / "compare.html", render(found, picture).encode())
    return {
        "runs": [{"name": run.name, "run": run.identity} for run in found.runs],
        "parameters": {key: [run.parameters.get(key) for run in found.runs] for key in found.differing},
        "metrics": {name: [run.metrics.get(name) for run in found.runs] for name in found.metrics},
        "page": f"{config.output}/compare.html",
        "picture": f"{config.output}/compare.png" if picture else None,
    }


def _rows(found: Comparison) -> dict[str, list[list[str]]]:
    """The two tables as text: title to rows, a name and one cell a run."""
    parameters = [[key, *(run.parameters.get(key, "") for run in found.runs)] for key in found.differing]
    metrics = [[name, *(f"{run.metrics[name]:.5g}" if name in run.metrics else "" for run in found.runs)] for name in found.metrics]
    return {"parameters that differ": parameters, "final metrics": metrics}


def tables(found: Comparison) -> list[Table]:
    """The two tables for a terminal: a row a key or metric, a column a run."""
    shown = []
    for title, rows in _rows(found).items():
        table = Table("", *(run.name for run in found.runs), title=title)
        for row in rows:
            table.add_row(*row)
        shown.append(table)
    return shown


def drawn_metrics(found: Comparison) -> list[str]:
    """The metrics that some run has a curve of."""
    return [name for name in found.metrics if any(name in run.curves for run in found.runs)]


def draw_curves(found: Comparison) -> bytes:
    """A PNG with one small plot a metric and one line a run; empty where there are no curves."""
    metrics = drawn_metrics(found)[:MOST_CURVES]
    if not metrics:
        return b""
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.0 * rows + 0.3 + 0.2 * len(found.runs)), layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = matplotlib.colormaps["tab10" if len(found.runs) <= 10 else "viridis"].resampled(max(10, len(found.runs)))
    for plot, metric in zip(plots, metrics, strict=False):
        for index, run in enumerate(found.runs):
            if metric in run.curves:
                steps, values = zip(*run.curves[metric], strict=True)
                plot.plot(steps, values, color=colours(index), linewidth=1.2, label=run.name)
        plot.set_title(metric, fontsize=9)
        plot.grid(alpha=0.3)
        plot.tick_params(labelsize=7)
    for plot in plots[len(metrics) :]:
        plot.set_axis_off()
    lines = [figure.axes[0].plot([], [], color=colours(index), label=run.name)[0] for index, run in enumerate(found.runs)]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(found.runs)), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def render(found: Comparison, picture: bytes) -> str:
    """The page: both tables and the curves, in one file."""
    parts = []
    for title, rows in _rows(found).items():
        head = "".join(f'<th title="{html.escape(run.identity)}">{html.escape(run.name)}</th>' for run in found.runs)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{title}</h2><table><tr><th></th>{head}</tr>{body}</table>")
    if picture:
        more = len(drawn_metrics(found)) - MOST_CURVES
        note = f"<p>{more} more metrics are not drawn</p>" if more > 0 else ""
        parts.append(f'<h2>over steps</h2><img src="data:image/png;base64,{base64.b64encode(picture).decode()}">{note}')
    style = "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:3px 8px;text-align:left}"
    return f'<!doctype html><meta charset="utf-8"><title>runs</title><style>{style}</style><h1>{len(found.runs)} runs</h1>{"".join(parts)}'
