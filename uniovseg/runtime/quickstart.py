"""The whole method on the shapes world, from nothing, with a table, pictures and one report at the end.

Make the sets, ingest, train stage 1, evaluate prompts; then captions to entities, masks matched with entities, train the adapter, evaluate naming.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import Config, load
from uniovseg.data.inspect import pictures_of_pairs
from uniovseg.data.shapes import UNSEEN
from uniovseg.data.shapes_sets import ShapesConfig, write_shapes
from uniovseg.methods.catalog import build_method
from uniovseg.pictures import save_picture, tile
from uniovseg.runtime.alignment import AlignmentConfig, compare_alignment
from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job
from uniovseg.runtime.ingest import IngestConfig, ingest
from uniovseg.runtime.match import MatchConfig, match
from uniovseg.runtime.pool import PoolConfig
from uniovseg.runtime.refine import RefineConfig, refine_here
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.runtime.train import TrainJobConfig, fit

CPUS = 4
"""Slots of the local Ray cluster that serves the whole run: two training workers, and Ray Data beside them."""


class QuickstartConfig(Config):
    """A run through everything on the shapes world. The same seed gives the same data, weights and order."""

    output: str = Field("runs/quickstart", description="folder of everything; it is emptied of an earlier run's training first")
    seed: int = Field(0, ge=0, description="seed of the world, the weights and every draw")
    image_masks: int = Field(1600, ge=64, description="scenes to train on")
    image_text: int = Field(256, ge=0, description="scenes with captions")
    evaluation: int = Field(64, ge=8, description="labelled scenes to evaluate on")
    curve: int = Field(0, ge=0, description="how many of them stage 1 is scored on as it learns, every `validation.every` steps; 0: none")
    train: str = Field("jobs/configs/stage1_shapes.yaml", description="configuration of stage 1")
    steps: int = Field(500, ge=1, description="optimizer steps of stage 1")
    match: str = Field("jobs/configs/match_shapes.yaml", description="configuration of mask-text matching")
    align: str = Field("jobs/configs/stage2_shapes.yaml", description="configuration of stage 2")
    align_steps: int = Field(1000, ge=1, description="optimizer steps of stage 2; stage 2 is left out where image_text is 0")
    threads: int = Field(1, ge=1, description="CPU threads of torch; on two cores a second one costs more than it gives, beside the feed")
    images_at_once: int = Field(2, ge=1, description="images evaluated at a time, each by such threads")
    tracking: TrackingConfig = Field(
        TrackingConfig(uri="sqlite:///runs/mlflow.db", experiment="uniovseg-quickstart", register_as="uniovseg"), description="MLflow"
    )

    @property
    def untrained_scenes(self) -> int:
        """How many of the labelled scenes the untrained model is evaluated on, for comparison only."""
        return self.evaluation // 8


@tracked("quickstart")
def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run it; returns the report. `promptable` holds the IoUs as fractions: trained, untrained, and of the box taken as the mask."""
    started = time.perf_counter()
    with ray_session(CPUS):
        return _run(config, started)


def _run(config: QuickstartConfig, started: float) -> dict[str, Any]:
    console = Console()
    torch.set_num_threads(config.threads)
    seconds: dict[str, float] = {}

    def begin(title: str) -> None:
        seconds[title] = time.perf_counter()
        console.print(Rule(f"[bold]{len(seconds)}. {title}[/bold]  ({time.perf_counter() - started:.0f} s so far)", align="left"))

    begin("the shapes world: images with masks, images with captions, a labelled evaluation set")
    shapes = ShapesConfig(
        output=f"{config.output}/shapes",
        seed=config.seed,
        image_masks=config.image_masks,
        image_text=config.image_text,
        evaluation=config.evaluation,
    )
    write_shapes(shapes)
    job = load(
        TrainJobConfig, config.train,
        [f"output={config.output}/stage1", f"seed={config.seed}", f"steps={config.steps}", f"threads={config.threads}",
         f"data.train={config.output}/shards"],
    ).model_copy(update={"tracking": config.tracking})  # fmt: skip
    begin("ingest: SA-1B tars to Parquet shards (Ray Data)")
    ingested = ingest(
        IngestConfig(source=f"{config.output}/shapes/image_masks", output=f"{config.output}/shards", part_bytes=8 * 1024**2, tracking=config.tracking)
    )
    if config.curve:
        labelled = f"{config.output}/validation"
        ingest(IngestConfig(format="coco_panoptic", source=f"{config.output}/shapes/evaluation/panoptic.json", output=labelled))
        job = job.model_copy(update={"validation": job.validation.model_copy(update={"shards": labelled, "images": config.curve})})
    begin("stage 1: a promptable segmenter over the frozen CLIP (Ray Train)")
    trained = fit(job)

    def evaluate(folder: str, title: str, limit: int) -> dict[str, float]:
        begin(title)
        settings = PromptableJobConfig(
            checkpoint=f"{config.output}/{folder}",
            annotations=f"{config.output}/shapes/evaluation/panoptic.json",
            output=f"{config.output}/{folder}_promptable",
            limit=limit,
            pictures=0,
            threads=config.threads,
            pool=PoolConfig(at_once=config.images_at_once),
            tracking=config.tracking,
        )
        scores: dict[str, float] = evaluate_promptable_job(settings)["promptable"]
        return scores

    method = build_method(job.method, config.seed)
    checkpoint.save(Path(config.output) / "untrained", CheckpointInfo(step=0, method=job.method.model_dump(mode="json")), method.state())
    before = evaluate("untrained", "promptable evaluation before training", config.untrained_scenes)
    after = evaluate("stage1/model", "promptable evaluation after training", config.evaluation)
    promptable = {
        "box_iou": after["box_iou"],
        "point_iou": after["point_iou"],
        "box_fill_iou": after["box_fill_iou"],
        "untrained_box_iou": before["box_iou"],
        "untrained_point_iou": before["point_iou"],
    }
    words = _words(config, begin) if config.image_text else {}
    report = {
        "promptable": promptable,
        **words,
        "seed": config.seed,
        "steps": config.steps,
        "seconds": round(time.perf_counter() - started, 1),
        "ingest": ingested,
        "checkpoint": trained["checkpoint"],
        "mlflow": trained["mlflow"],
        "pictures": [f"{config.output}/stage1/model_promptable/everything.png", *([f"{config.output}/pairs.png"] if words else [])],
    }
    show(console, config, report)
    return report


def _words(config: QuickstartConfig, begin: Callable[[str], None]) -> dict[str, Any]:
    """Stage 2 and its evaluation on half of the scenes; the report's ``open_vocabulary`` and what led to it."""
    stage1, output = f"{config.output}/stage1/model", config.output
    tracking = config.tracking
    begin("refine: captions to entities, by rules")
    entities = refine_here(RefineConfig(source=f"{output}/shapes/image_text", output=f"{output}/entities", part_samples=256, tracking=tracking))
    begin("match: which mask does an entity name?")
    paths = [f"entities={output}/entities", f"output={output}/pairs", f"checkpoint={stage1}"]
    matched = match(load(MatchConfig, config.match, paths).model_copy(update={"tracking": tracking}))
    save_picture(f"{output}/pairs.png", tile(pictures_of_pairs(f"{output}/pairs", 12), columns=4, side=480))
    begin("stage 2: the feature adapter on the matched pairs (Ray Train)")
    paths = [f"output={output}/stage2", f"init={stage1}", f"data.train={output}/pairs", f"seed={config.seed}", f"steps={config.align_steps}"]
    size = checkpoint.read_info(Path(stage1)).method["size"]
    fit(load(TrainJobConfig, config.align, [*paths, f"method.size={size}"]).model_copy(update={"tracking": tracking}))
    begin("open-vocabulary evaluation: the frozen CLIP's names and the adapter's")
    compared = AlignmentConfig(
        baseline=stage1,
        aligned=f"{output}/stage2/model",
        annotations=f"{output}/shapes/evaluation/panoptic.json",
        vocabulary="shapes",
        limit=config.evaluation // 2,
        images_at_once=config.images_at_once,
        masks_of=("shapes",),
    )
    return {"open_vocabulary": compare_alignment(compared, UNSEEN), "entities": entities, "pairs": matched}


def show(console: Console, config: QuickstartConfig, report: dict[str, Any]) -> None:
    """The closing table, where to look, and what to try next."""
    scores = report["promptable"]
    table = Table(
        title=f"The shapes world, seed {config.seed}: mean IoU over {config.evaluation} scenes that no training saw, "
        f"untrained over {config.untrained_scenes} ({report['seconds']:.0f} s in all)"
    )
    for column in ("prompt", "untrained", "trained", "the box itself"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    table.add_row("1 box", f"{scores['untrained_box_iou']:.3f}", f"{scores['box_iou']:.3f}", f"{scores['box_fill_iou']:.3f}")
    table.add_row("1 point (best of a 20 x 20 grid)", f"{scores['untrained_point_iou']:.3f}", f"{scores['point_iou']:.3f}", "")
    console.print(table)
    if words := report.get("open_vocabulary"):
        table = Table(title=f"Naming masks in {config.evaluation // 2} of the scenes (unseen: classes that no stage-2 caption names)")
        for column in ("", "frozen CLIP", "aligned"):
            table.add_column(column, justify="right" if column else "left")
        for masks, figures in (("this run's masks", words), ("the shipped model's masks", words["masks_of"]["shapes"])):
            for row, key in (("mIoU, all", "miou"), ("mIoU, unseen", "unseen_miou"), ("PQ", "pq")):
                table.add_row(f"{masks}: {row}", *(f"{figures[f'{name}_{key}']:.3f}" for name in ("baseline", "aligned")))
        table.add_row("perfect masks: mIoU, all", f"{words['baseline_oracle_mask_miou']:.3f}", f"{words['oracle_mask_miou']:.3f}")
        console.print(table)
    lines = [
        f"pictures    {report['pictures'][0]} (image, ground truth, everything)",
        *(f"            {picture} (an entity and the mask that it names)" for picture in report["pictures"][1:]),
        f"MLflow run  {report['mlflow']}",
        f"checkpoint  {report['checkpoint']}",
        "",
        "Next:",
        f"  .venv/bin/python -m uniovseg segment {config.output}/shapes/evaluation/images/000000.jpg --checkpoint {report['checkpoint']}",
        f"  .venv/bin/python -m uniovseg inspect {config.output}/shards",
        f"  .venv/bin/python jobs/evaluate.py promptable checkpoint={report['checkpoint']} annotations={config.output}/shapes/evaluation/panoptic.json",
        f"  .venv/bin/python jobs/train.py --config jobs/configs/stage1_shapes.yaml data.train={config.output}/shards optim.lr=5e-4",
        f"  .venv/bin/mlflow ui --backend-store-uri {config.tracking.resolve()}",
    ]
    console.print("\n".join(lines), soft_wrap=True, highlight=False)
