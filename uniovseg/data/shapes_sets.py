"""Writes the three sets of the shapes world to disk: SA-1B tars, image-text Parquet, COCO panoptic scenes for evaluation."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import Parallel, delayed
from pydantic import Field
from rich.progress import Progress

from uniovseg.config import Config
from uniovseg.data import shapes
from uniovseg.data.coco import write_sa1b_tars
from uniovseg.data.shapes import CATEGORIES, Scene, SceneConfig, category_of
from uniovseg.errors import ConfigError
from uniovseg.records import ImageMasks, ImageText
from uniovseg.storage import local_folder


class ShapesConfig(Config):
    """The three sets of the shapes world."""

    output: str = Field("runs/shapes", description="folder of the sets: image_masks/, image_text/, evaluation/")
    seed: int = Field(0, ge=0, description="seed of every scene and caption")
    image_masks: int = Field(4096, ge=0, description="scenes of the image-mask set")
    image_text: int = Field(4096, ge=0, description="scenes of the image-text set")
    evaluation: int = Field(128, ge=0, description="scenes of the labelled evaluation set")
    per_tar: int = Field(1024, ge=1, description="samples a tar of the image-mask set")
    noise_share: float = Field(0.15, ge=0, le=1, description="share of captions with a wrong or missing entity")
    processes: int = Field(2, ge=1, description="processes that draw")
    scene: SceneConfig = Field(SceneConfig(), description="what scenes look like")


ItemT = TypeVar("ItemT")


def _draw(make: Callable[[int], ItemT], indices: range) -> list[ItemT]:
    cv2.setNumThreads(1)
    return [make(index) for index in indices]


def _drawn(config: ShapesConfig, what: str, count: int, make: Callable[[int], ItemT]) -> Iterator[ItemT]:
    """The items of a set in order, drawn by several processes ahead of the writer.

    The processes are joblib's: they serve the next set too, and do not import the program that runs here, as the standard library's would.
    """
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]
    processes = Parallel(n_jobs=config.processes, return_as="generator")
    with Progress() as progress:
        task = progress.add_task(f"drawing {what}", total=count)
        for items in processes(delayed(_draw)(make, chunk) for chunk in chunks):
            yield from items
            progress.advance(task, len(items))


def _image_masks(config: ShapesConfig, index: int) -> ImageMasks:
    return shapes.image_masks(config.scene, config.seed, index)


def _image_text(config: ShapesConfig, index: int) -> ImageText:
    return shapes.image_text(config.scene, config.seed, index, config.noise_share)


def _evaluation(config: ShapesConfig, index: int) -> Scene:
    return shapes.draw_scene(config.scene, shapes.scene_rng(config.seed, shapes.EVALUATION_STREAM, index), held_out=True)


def write_shapes(config: ShapesConfig) -> dict[str, int]:
    """Write the sets under ``config.output``; returns the number of images of each. Equal configurations give equal files.

    Raises:
        ConfigError: the output is no folder of this machine.
    """
    root = local_folder(config.output)
    if config.image_masks:
        _refuse_other_tars(root / "image_masks", -(-config.image_masks // config.per_tar))
        write_sa1b_tars(_drawn(config, "image-mask scenes", config.image_masks, partial(_image_masks, config)), root / "image_masks", config.per_tar)
    if config.image_text:
        pairs = list(_drawn(config, "image-text scenes", config.image_text, partial(_image_text, config)))
        table = pa.table(
            {"key": [p.key for p in pairs], "image": pa.array([p.image for p in pairs], pa.large_binary()), "caption": [p.caption for p in pairs]}
        )
        (root / "image_text").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "image_text" / "pairs.parquet", row_group_size=256)
    if config.evaluation:
        write_panoptic(_drawn(config, "evaluation scenes", config.evaluation, partial(_evaluation, config)), root / "evaluation", config.scene)
    return {"image_masks": config.image_masks, "image_text": config.image_text, "evaluation": config.evaluation}


def _refuse_other_tars(folder: Path, count: int) -> None:
    """Raise ConfigError where a folder has tars besides the `count` that will be written over: whoever reads it would read those too."""
    if others := sorted({path.name for path in folder.glob("*.tar")} - {f"sa_{number:06d}.tar" for number in range(count)}):
        raise ConfigError(
            "the output holds tars of another set",
            seen=f"{others[0]} and {len(others) - 1} more in {folder}",
            fix="give another output, or remove them",
        )


def write_panoptic(scenes: Iterator[Scene], folder: Path, scene: SceneConfig) -> None:
    """Write labelled scenes in COCO panoptic form: images/, panoptic/ (PNG ids) and panoptic.json with things, stuff and class names."""
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, drawn in enumerate(scenes):
        stem = f"{number:06d}"
        labelled = [(item.class_index, item.mask) for item in drawn.objects] + list(drawn.grounds)
        ids = np.zeros((scene.size, scene.size), np.uint8)
        segments = []
        for segment, (class_index, mask) in enumerate(labelled, start=1):
            if mask.sum() < shapes.MIN_MASK_AREA:
                continue  # stays 0, void
            ids[mask] = segment
            ys, xs = np.nonzero(mask)
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            segments.append({"id": segment, "category_id": category_of(class_index), "iscrowd": 0, "bbox": box, "area": int(mask.sum())})
        (folder / "images" / f"{stem}.jpg").write_bytes(shapes.encode_image(drawn.image, scene.jpeg_quality))
        colours = np.zeros((scene.size, scene.size, 3), np.uint8)
        colours[..., 2] = ids  # BGR in memory: the id, below 256, is the red channel
        cv2.imwrite(str(folder / "panoptic" / f"{stem}.png"), colours)
        images.append({"id": number, "file_name": f"{stem}.jpg", "width": scene.size, "height": scene.size})
        annotations.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
    categories = [{"id": category.id, "name": category.name, "isthing": int(category.is_thing)} for category in CATEGORIES]
    (folder / "panoptic.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
