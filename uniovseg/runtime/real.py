"""Stage 1 on real images: coco128's training half, written as SA-1B tars, ingested, trained on, and evaluated on images it has not seen."""

import os
import time
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import Config, load
from uniovseg.data.coco import iter_records, read_annotations, write_sa1b_tars
from uniovseg.errors import DataError
from uniovseg.methods.catalog import build_method
from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job
from uniovseg.runtime.ingest import IngestConfig, ingest
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.train import TrainJobConfig, fit

VARIABLE = "UNIOVSEG_REAL_DATA"
LAYOUT = {
    "coco128/images/train2017": "images to train on",
    "coco128/panoptic_segmentation/annotations/panoptic_train2017.json": "their panoptic labels (PNGs beside it)",
    "coco128/images/val2017": "images to evaluate on",
    "coco128/panoptic_segmentation/annotations/panoptic_val2017.json": "their panoptic labels",
    "coco_mini/train2017": "more images to evaluate on",
    "coco_mini/annotations/instances_train2017.json": "their instances",
}


class RealConfig(Config):
    """Stage 1 on real images."""

    output: str = Field("runs/real", description="folder of everything")
    seed: int = Field(0, ge=0, description="seed of weights and draws")
    train: str = Field("jobs/configs/stage1_real.yaml", description="configuration of stage 1")
    evaluation: int = Field(40, ge=1, description="most images evaluated of each set")
    threads: int = Field(1, ge=1, description="CPU threads of torch, a worker; on two cores two workers of one thread are the fastest")


def real_data() -> Path:
    """The folder that UNIOVSEG_REAL_DATA names. Raises DataError that says what is expected when it is unset or incomplete."""
    expected = "; ".join(f"{path} ({what})" for path, what in LAYOUT.items())
    if not os.environ.get(VARIABLE):
        raise DataError(f"{VARIABLE} is not set", allowed=f"a folder with: {expected}", fix="COCO images and annotations in this layout will do")
    root = Path(os.environ[VARIABLE])
    missing = [path for path in LAYOUT if not (root / path).exists()]
    if missing:
        raise DataError(f"{VARIABLE} lacks files", seen=f"{root} without {', '.join(missing)}", allowed=expected)
    return root


def real(config: RealConfig) -> dict[str, Any]:
    """Run it; the report holds box and point IoU of the untrained, the shapes-trained and the real-trained model, and box fill, on both sets."""
    started = time.perf_counter()
    root = real_data()
    labels = root / "coco128/panoptic_segmentation/annotations"
    sets = {
        "coco128": {"annotations": labels / "panoptic_val2017.json", "images": root / "coco128/images/val2017"},
        "coco_mini": {"annotations": root / "coco_mini/annotations/instances_train2017.json", "images": root / "coco_mini/train2017"},
    }
    out = Path(config.output)
    items = read_annotations(labels / "panoptic_train2017.json", root / "coco128/images/train2017")
    write_sa1b_tars(iter_records(items), out / "tars", per_tar=50)
    overrides = [f"output={out}/stage1", f"seed={config.seed}", f"data.train={out}/shards", f"threads={config.threads}"]
    job = load(TrainJobConfig, config.train, overrides)
    with ray_session(job.workers + 2):
        ingest(IngestConfig(source=str(out / "tars"), output=str(out / "shards")))
        fit(job)
    info = CheckpointInfo(step=0, method=job.method.model_dump(mode="json"))
    checkpoint.save(out / "untrained", info, build_method(job.method, config.seed).state())
    with checkpoint.opened("shapes") as folder:  # the shapes model at the canvas size of this run
        checkpoint.save(out / "shapes_trained", info, checkpoint.read_weights(folder))

    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name, source in sets.items():
        scores[name] = {}
        for model, path in {"untrained": "untrained", "shapes": "shapes_trained", "real": "stage1/model"}.items():
            settings = PromptableJobConfig(
                checkpoint=str(out / path),
                annotations=str(source["annotations"]),
                images=str(source["images"]),
                limit=config.evaluation,
                output=str(out / f"evaluation/{name}_{model}"),
                threads=config.threads,
            )
            scores[name][model] = evaluate_promptable_job(settings)["promptable"]
    show(scores)
    return {
        "promptable": scores,
        "pictures": [f"{out}/evaluation/{name}_real/everything.png" for name in sets],
        "seconds": time.perf_counter() - started,
    }


def show(scores: dict[str, dict[str, dict[str, float]]]) -> None:
    """The models side by side."""
    table = Table("set", "prompt", "untrained", "shapes-trained", "real-trained", "the box itself", title="Real images, unseen: mean IoU")
    for name, models in scores.items():
        boxes, points = ([f"{models[model][key]:.3f}" for model in ("untrained", "shapes", "real")] for key in ("box_iou", "point_iou"))
        table.add_row(name, "1 box", *boxes, f"{models['real']['box_fill_iou']:.3f}")
        table.add_row("", "1 point", *points, "")
    Console().print(table)
