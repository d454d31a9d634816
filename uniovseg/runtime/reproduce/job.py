"""The job: which table, in which world, and what is written: a table on the terminal, CSV, the curve as PNG, and the report."""

import io
import time
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uniovseg import storage
from uniovseg.errors import ConfigError
from uniovseg.runtime.evaluate_words import to_csv
from uniovseg.runtime.reproduce.benchmark_tables import BenchmarkTablesConfig, benchmark_rows
from uniovseg.runtime.reproduce.cost import CostConfig, measure_cost
from uniovseg.runtime.reproduce.paper import paper_value
from uniovseg.runtime.reproduce.rows import Row, in_print, mean_and_std, show_missing, show_paper, show_rows, wide_console
from uniovseg.runtime.reproduce.shapes_world import (
    SeedResult,
    ShapesWorldConfig,
    Step,
    ablation_steps,
    missing_tools,
    noise_steps,
    run_steps,
)
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.storage import Location

FIGURES = ("miou", "unseen_miou", "pq", "oracle_mask_miou")

PAPER_METRICS: dict[str, tuple[str, ...]] = {"1": ("miou",), "2": ("pq", "sq", "rq"), "promptable": ("point_iou", "box_iou")}
"""Tables whose other rows, of methods that are not built here, are printed as the paper has them, and their metrics."""


class ReproduceConfig(BenchmarkTablesConfig):
    """Which of the paper's tables is run, and where."""

    output: str = Field("runs/reproduce", description="folder of report.json, the CSV files and all runs")
    table: Literal[1, 2, 3, 4, "promptable"] | None = Field(None, description="which table; null: none, only noise or cost")
    world: Literal["benchmarks", "shapes"] = Field("benchmarks", description="the paper's data sets; table 3 also runs on the shapes world")
    noise: bool = Field(False, description="shapes world: mIoU by the share of wrong captions, with refinement and without")
    cost: bool = Field(False, description="shapes world: seconds and memory by the number of scales")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="shapes world: a world and a training for each")
    shapes: ShapesWorldConfig = Field(ShapesWorldConfig(), description="shapes world: sizes of the runs")
    costs: CostConfig = Field(CostConfig(), description="shapes world: what cost measures")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


@tracked("reproduce")
def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Run what is asked; the report has ``table``, ``noise`` and ``cost``, each where it was asked. Every figure is a fraction.

    Raises:
        ConfigError: nothing is asked, or a table that the shapes world does not have.
        UniOVSegError: as the jobs on the shapes world; on the paper's data sets such an error is a row that says what is missing.
    """
    started = time.perf_counter()
    if config.table is None and not config.noise and not config.cost:
        raise ConfigError("nothing is asked", allowed="--table 1|2|3|4|promptable, --noise, --cost")
    if config.world == "shapes" and config.table not in (None, 3):
        raise ConfigError("the shapes world has only table 3", seen=config.table, fix="leave --world away")
    report: dict[str, Any] = {}
    console = wide_console()
    if config.table is not None:
        report["table"] = _ablation(config, console) if config.world == "shapes" else _benchmarks(config, console)
    if config.noise:
        report["noise"] = _noise(config, console)
    if config.cost:
        report["cost"] = _cost(config, console)
    return report | {"seconds": round(time.perf_counter() - started, 1)}


def _benchmarks(config: ReproduceConfig, console: Console) -> dict[str, Any]:
    table = str(config.table)
    rows: list[Row] = []
    for found in track(benchmark_rows(table, config, f"{config.output}/table_{table}"), f"table {table}"):
        rows += found
    show_rows(console, f"table {table}: ours beside the paper's, %", rows)
    for metric in PAPER_METRICS.get(table, ()):
        show_paper(console, table, metric)
    return {"table": table, "world": config.world, "rows": rows, "csv": _write_csv(config, f"table_{table}.csv", rows)}


def _ablation(config: ReproduceConfig, console: Console) -> dict[str, Any]:
    steps = ablation_steps(config.shapes)
    missing = missing_tools(steps)
    results = run_steps(config.shapes, [step for step in steps if step.name not in missing], config.seeds, f"{config.output}/table_3_shapes")
    rows = [_ablation_row(None, results, "")] + [_ablation_row(step, results, missing.get(step.name, "")) for step in steps]
    _show_ablation(console, config, rows)
    gain, spread = rows[-1]["gain"], max(rows[0]["miou_std"] or 0.0, rows[-1]["miou_std"] or 0.0)
    return {
        "table": "3",
        "world": "shapes",
        "seeds": config.seeds,
        "noise": config.shapes.noise.model_dump(),
        "rows": rows,
        "baseline_settings": [result.namings.baseline_setting for result in results],
        "full_row_is_better_by_more_than_one_std": None if gain is None or len(config.seeds) < 2 else gain > spread,
        "csv": _write_csv(config, "table_3_shapes.csv", [{key: value for key, value in row.items() if key != "by_seed"} for row in rows]),
    }


def _ablation_row(step: Step | None, results: Sequence[SeedResult], missing: str) -> dict[str, Any]:
    """A row of table 3: figures with mean and standard deviation over seeds, noise set and found, and the paper's mIoU on COCO with its gain."""
    name = step.name if step else "baseline"
    found = [] if missing else [result.namings.aligned[name] if step else result.namings.baseline for result in results]
    row: dict[str, Any] = {"row": name}
    for figure in FIGURES:
        row[figure], row[f"{figure}_std"] = mean_and_std(getattr(each, figure) for each in found)
    gains = [
        None if a.miou is None or b.miou is None else a.miou - b.miou for a, b in zip(found, [r.namings.baseline for r in results], strict=False)
    ]
    row["gain"], row["gain_std"] = mean_and_std(gains)
    row["wrong_images"], _ = mean_and_std(result.wrong_images[name] for result in results if step and not missing)
    row["captions"] = (f"captioner from {step.raw:g}" if step.captioner else "raw") if step else ""
    row["caption_noise"] = float(step.captioner.partition("@")[2] or step.raw) if step else None
    row["parser"], _, share = step.parser.partition("@") if step else ("", "", "")
    row["parser_noise"] = float(share) if step else None
    row["sizes"] = "+".join(map(str, step.sizes)) if step else "best"
    paper, paper_baseline = (paper_value("3", which, "coco_semantic", "miou", "v1") for which in (name, "baseline"))
    row["paper_coco_miou"] = paper
    row["paper_gain"] = None if paper is None or paper_baseline is None else paper - paper_baseline
    row["gain_minus_paper"] = None if row["gain"] is None or row["paper_gain"] is None else row["gain"] - row["paper_gain"]
    return row | {"by_seed": [each.miou for each in found], "missing": missing}


def _show_ablation(console: Console, config: ReproduceConfig, rows: Sequence[dict[str, Any]]) -> None:
    title = f"table 3 on the shapes world, seeds {', '.join(map(str, config.seeds))}: mean and standard deviation, %"
    columns = ("row", "captions wrong", "parser wrong", "images wrong, found", "sizes", "mIoU", "unseen", "PQ", "gain", "paper: COCO mIoU", "gain")
    table = Table(*columns, title=title)
    for row in rows:
        shares = [in_print(row["caption_noise"]), f"{row['parser']} {in_print(row['parser_noise'])}".strip(), in_print(row["wrong_images"])]
        figures = [_with_std(row, name) for name in ("miou", "unseen_miou", "pq", "gain")]
        if row["missing"]:
            figures[0] = "missing"
        table.add_row(row["row"], *shares, row["sizes"], *figures, in_print(row["paper_coco_miou"]), in_print(row["paper_gain"], signed=True))
    console.print(table)
    show_missing(console, {row["row"]: row["missing"] for row in rows if row["missing"]})


def _with_std(row: dict[str, Any], name: str) -> str:
    spread = row[f"{name}_std"]
    return in_print(row[name], signed=name == "gain") + ("" if spread is None else f" ± {in_print(spread)}")


def _noise(config: ReproduceConfig, console: Console) -> dict[str, Any]:
    pairs = noise_steps(config.shapes)
    results = run_steps(config.shapes, [step for _, raw, refined in pairs for step in (raw, refined)], config.seeds, f"{config.output}/noise")
    baseline = mean_and_std(result.namings.baseline.miou for result in results)
    rows = []
    for share, raw, refined in pairs:
        row: dict[str, Any] = {"wrong_captions": share}
        for label, step in (("raw", raw), ("refined", refined)):
            row[f"{label}_wrong_images"], _ = mean_and_std(result.wrong_images[step.name] for result in results)
            row[f"{label}_miou"], row[f"{label}_miou_std"] = mean_and_std(result.namings.aligned[step.name].miou for result in results)
        rows.append(row)
    title = f"shapes world, seeds {', '.join(map(str, config.seeds))}: aligned mIoU by wrong captions, %; the frozen CLIP has {in_print(baseline[0])}"
    table = Table("captions wrong", "not refined: images wrong, found", "mIoU", "refined: images wrong, found", "mIoU", title=title)
    for row in rows:
        cells = [text for label in ("raw", "refined") for text in (in_print(row[f"{label}_wrong_images"]), _with_std(row, f"{label}_miou"))]
        table.add_row(in_print(row["wrong_captions"]), *cells)
    console.print(table)
    picture = f"{config.output}/noise.png"
    storage.write_bytes(Location.of(picture), _curve(rows, baseline[0]))
    console.print(f"curve: {picture}", soft_wrap=True)
    return {
        "seeds": config.seeds, "baseline_miou": baseline[0], "baseline_miou_std": baseline[1], "rows": rows, "picture": picture,
        "csv": _write_csv(config, "noise.csv", rows),
    }  # fmt: skip


def _curve(rows: Sequence[dict[str, Any]], baseline: float | None) -> bytes:
    """The curve as PNG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="captions wrong, %", ylabel="mIoU, %")
    for label, name in (("refined", "refined captions"), ("raw", "captions as they are")):
        means, spreads = ([100 * (row[f"{label}_miou{end}"] or 0.0) for row in rows] for end in ("", "_std"))
        axes.errorbar([100 * row["wrong_captions"] for row in rows], means, yerr=spreads, marker="o", capsize=3, label=name)
    if baseline is not None:
        axes.axhline(100 * baseline, color="grey", linestyle="--", label="frozen CLIP")
    axes.set_ylim(bottom=0)
    axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def _cost(config: ReproduceConfig, console: Console) -> dict[str, Any]:
    rows = measure_cost(config.costs)
    table = Table(
        "task", "scales", "sizes, px", "seconds an image", "memory, MiB", "of it before", title=f"cost by scales: {config.costs.checkpoint}"
    )
    for row in rows:
        table.add_row(row["task"], str(row["scales"]), row["sizes"], f"{row['seconds']:.3f}", f"{row['memory_mib']:.0f}", f"{row['model_mib']:.0f}")
    console.print(table)
    return {"rows": rows, "csv": _write_csv(config, "cost.csv", rows)}


def _write_csv(config: ReproduceConfig, name: str, rows: Sequence[dict[str, Any]]) -> str:
    storage.write_bytes(Location.of(config.output) / name, to_csv(rows).encode())
    return f"{config.output}/{name}"
