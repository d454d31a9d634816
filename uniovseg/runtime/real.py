"""The whole method on a few real images, evaluated on images it has not seen.

Stage 1 trains on coco128's training half, written as SA-1B tars. Stage 2 reads the captions of coco_mini: other images, so that text and masks are
unpaired. Its frozen CLIP is the small one of the shapes world, which knows no word of these images: what is shown is that all of it runs.
"""

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
from uniovseg.data.inspect import pictures_of_pairs
from uniovseg.errors import DataError
from uniovseg.methods.catalog import build_method
from uniovseg.pictures import save_picture, tile
from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job
from uniovseg.runtime.evaluate_words import WordsJobConfig, evaluate_panoptic_job, evaluate_semantic_job
from uniovseg.runtime.ingest import IngestConfig, ingest
from uniovseg.runtime.match import MatchConfig, match
from uniovseg.runtime.pool import PoolConfig
from uniovseg.runtime.refine import RefineConfig, refine_here
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.runtime.train import TrainJobConfig, fit
from uniovseg.text.nltk_parser import parse_entities

CPUS = 4
"""Slots of the local Ray cluster: two training workers, and Ray Data beside them."""

VARIABLE = "UNIOVSEG_REAL_DATA"
LAYOUT = {
    "coco128/images/train2017": "images to train on",
    "coco128/panoptic_segmentation/annotations/panoptic_train2017.json": "their panoptic labels (PNGs beside it)",
    "coco128/images/val2017": "images to evaluate on",
    "coco128/panoptic_segmentation/annotations/panoptic_val2017.json": "their panoptic labels",
    "coco_mini/train2017": "more images to evaluate on",
    "coco_mini/annotations/instances_train2017.json": "their instances",
    "coco_mini/annotations/captions_train2017.json": "their captions",
}


class RealConfig(Config):
    """Both stages on real images."""

    output: str = Field("runs/real", description="folder of everything")
    seed: int = Field(0, ge=0, description="seed of weights and draws")
    train: str = Field("jobs/configs/stage1_real.yaml", description="configuration of stage 1")
    match: str = Field("jobs/configs/match_real.yaml", description="configuration of mask-text matching")
    align: str = Field("jobs/configs/stage2_real.yaml", description="configuration of stage 2")
    evaluation: int = Field(100, ge=1, description="most images evaluated of each set")
    threads: int = Field(1, ge=1, description="CPU threads of torch, a worker; on two cores two workers of one thread are the fastest")
    images_at_once: int = Field(2, ge=1, description="images evaluated at a time, each by such threads")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


def real_data() -> Path:
    """The folder that UNIOVSEG_REAL_DATA names. Raises DataError that says what is expected when it, or NLTK's data, is unset or incomplete."""
    expected = "; ".join(f"{path} ({what})" for path, what in LAYOUT.items())
    if not os.environ.get(VARIABLE):
        raise DataError(f"{VARIABLE} is not set", allowed=f"a folder with: {expected}", fix="COCO images and annotations in this layout will do")
    root = Path(os.environ[VARIABLE])
    missing = [path for path in LAYOUT if not (root / path).exists()]
    if missing:
        raise DataError(f"{VARIABLE} lacks files", seen=f"{root} without {', '.join(missing)}", allowed=expected)
    parse_entities("a dog")  # says what to do when NLTK or its data is not there
    return root


@tracked("real")
def real(config: RealConfig) -> dict[str, Any]:
    """Run it.

    The report's ``promptable`` holds box and point IoU of the untrained, the shapes-trained and the real-trained model, and box fill, on both sets;
    ``words`` the mIoU and PQ on coco128's other half, over 133 classes, of the frozen CLIP's names and of the adapter's.
    """
    started = time.perf_counter()
    with ray_session(CPUS):
        return _run(config, real_data(), started)


def _run(config: RealConfig, root: Path, started: float) -> dict[str, Any]:
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
                pictures=0,
                threads=config.threads,
                pool=PoolConfig(at_once=config.images_at_once),
            )
            scores[name][model] = evaluate_promptable_job(settings)["promptable"]
    words = _words(config, root)
    show(scores, words)
    return {
        "promptable": scores,
        "words": words,
        "pictures": [*(f"{out}/evaluation/{name}_real/everything.png" for name in sets), f"{out}/pairs.png"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def _words(config: RealConfig, root: Path) -> dict[str, Any]:
    """Stage 2 on coco_mini's captions, and what it does for naming."""
    out = config.output
    captions = RefineConfig(
        source=str(root / "coco_mini/annotations/captions_train2017.json"),
        format="coco",
        images=str(root / "coco_mini/train2017"),
        output=f"{out}/entities",
        parser="nltk",
    )
    entities = refine_here(captions)
    matched = match(load(MatchConfig, config.match, [f"entities={out}/entities", f"output={out}/pairs", f"checkpoint={out}/stage1/model"]))
    save_picture(f"{out}/pairs.png", tile(pictures_of_pairs(f"{out}/pairs", 12), columns=4, side=480))
    paths = [f"output={out}/stage2", f"init={out}/stage1/model", f"data.train={out}/pairs", f"seed={config.seed}"]
    fit(load(TrainJobConfig, config.align, paths))
    figures: dict[str, dict[str, Any]] = {}
    for name, stage in {"frozen": "stage1", "aligned": "stage2"}.items():
        settings = {
            "checkpoint": f"{out}/{stage}/model",
            "annotations": str(root / "coco128/panoptic_segmentation/annotations/panoptic_val2017.json"),
            "images": str(root / "coco128/images/val2017"),
            "vocabulary": "coco_panoptic",
            "limit": config.evaluation,
            "method": {"test_points_per_side": 16},
            "pool": PoolConfig(workers=2),
            "pictures": 4,
        }
        semantic = evaluate_semantic_job(WordsJobConfig(output=f"{out}/evaluation/semantic_{name}", **settings))
        panoptic = evaluate_panoptic_job(WordsJobConfig(output=f"{out}/evaluation/panoptic_{name}", **settings))
        figures[name] = {"miou": semantic["semantic"]["miou"], "pq": panoptic["panoptic"]["All"]["pq"], "pages": [semantic["page"], panoptic["page"]]}
    return {**figures, "entities": entities, "pairs": matched}


def show(scores: dict[str, dict[str, dict[str, float]]], words: dict[str, Any]) -> None:
    """The models side by side, and the namings."""
    table = Table("set", "prompt", "untrained", "shapes-trained", "real-trained", "the box itself", title="Real images, unseen: mean IoU")
    for name, models in scores.items():
        boxes, points = ([f"{models[model][key]:.3f}" for model in ("untrained", "shapes", "real")] for key in ("box_iou", "point_iou"))
        table.add_row(name, "1 box", *boxes, f"{models['real']['box_fill_iou']:.3f}")
        table.add_row("", "1 point", *points, "")
    Console().print(table)
    table = Table("names by", "mIoU", "PQ", title="Real images, unseen: 133 classes")
    for name in ("frozen", "aligned"):
        table.add_row(f"the {name} CLIP", f"{words[name]['miou']:.4f}", f"{words[name]['pq']:.4f}")
    Console().print(table)
