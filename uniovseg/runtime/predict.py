"""Prediction as a job: a folder or prefix of images and a vocabulary to COCO results, instances and panoptic maps.

Images are worked off some at a time on the pool that evaluation uses. Such a part commits by one file of rows, one an image, after its PNGs; a run that is
started again leaves out the images that have a row. What people and tools read is put together from the rows at the end: ids of images are given there.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.progress import track

from uniovseg import storage
from uniovseg.checkpoint import located
from uniovseg.config import Config
from uniovseg.data.benchmarks import with_ids_of
from uniovseg.data.images import decode_image
from uniovseg.data.panoptic import annotation, categories, decode_ids, encode_ids
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError, DataError, MissingFileError
from uniovseg.open_vocabulary import SegmentationConfig, instances, panoptic_map
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pictures import draw_masks, encode_picture
from uniovseg.records import Prediction, Vocabulary
from uniovseg.runtime.pool import THREADS, PoolConfig, over_items, use_threads
from uniovseg.runtime.shards import check_settings
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig, open_run
from uniovseg.segmenter import Segmenter
from uniovseg.segments import Region, describe_instances
from uniovseg.storage import Location
from uniovseg.training import pick_device

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Names of images end so, in small or capital letters."""

PARTS, PANOPTIC = "parts", "panoptic"
"""Folders of the rows and of the PNGs, below the output."""

Output = Literal["panoptic", "instance"]


class PredictConfig(Config):
    """From images to COCO results."""

    images: str = Field(..., description="folder or prefix of images, at any depth")
    vocabulary: str = Field(..., description="a packaged vocabulary, a .json or .txt file, or words parted by commas")
    output: str = Field(..., description="folder of the results")
    checkpoint: str = Field("shapes", description="checkpoint folder or URI; 'shapes': the packaged model of the shapes world")
    method: dict[str, Any] = Field({}, description="settings of the method that differ from the checkpoint's, as method.size=896")
    tasks: tuple[Output, ...] = Field(
        ("panoptic", "instance"), min_length=1, description="what is written: panoptic maps, instances of things, or both"
    )
    segmentation: SegmentationConfig = Field(SegmentationConfig(), description="from masks to maps and instances")
    image_ids: str | None = Field(
        None, description="COCO JSON with the images to take and their ids; null: all images, the number in the name where all have one, else from 1"
    )
    category_ids: str | None = Field(
        None, description="panoptic benchmark whose category ids the results have, as cityscapes_panoptic; null: the vocabulary's own ids"
    )
    images_per_part: int = Field(32, ge=1, description="images that are committed together")
    pictures: int = Field(8, ge=0, description="images that are drawn with what was found, spread over all")
    pool: PoolConfig = Field(PoolConfig(), description="actors")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description=THREADS)
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


class ImageRow(Config):
    """What became of one image."""

    name: str = Field(..., description="path below the folder of images")
    height: int = Field(0, ge=0, description="pixels")
    width: int = Field(0, ge=0, description="pixels")
    png: str | None = Field(None, description="path of the panoptic PNG below panoptic/")
    segments: tuple[dict[str, Any], ...] = Field((), description="its segments, as COCO's segments_info")
    instances: tuple[dict[str, Any], ...] = Field((), description="things, as COCO results without image_id")
    reason: str | None = Field(None, description="why there is no prediction: missing_file, undecodable_image")
    detail: str | None = Field(None, description="the same in a line for a person")


class Rows(Config):
    """The rows of one part: the content of its commit."""

    rows: tuple[ImageRow, ...] = Field(..., description="one an image")


Item = tuple[str, str]
"""An image to predict: its path below the folder of images, and that of its PNG below panoptic/."""


class Predictor:
    """Predicts one part after another with one loaded model. Built in the worker; the configuration must hold absolute paths."""

    def __init__(self, config: PredictConfig, vocabulary: Vocabulary) -> None:
        use_threads(config.threads, config.pool)
        self.config, self.vocabulary = config, vocabulary
        self.images, self.output = Location(config.images), Location(config.output)
        self.method = Segmenter.load(config.checkpoint, str(pick_device(config.device)), config.method).method

    def __call__(self, part: Sequence[Item]) -> int:
        """Predict the images of a part and commit their rows; returns how many there are."""
        found = Rows(rows=tuple(self._row(name, png) for name, png in part))
        label = hashlib.sha256("\n".join(name for name, _ in part).encode()).hexdigest()[:16]
        storage.write_bytes(self.output / PARTS / f"{label}.json", found.model_dump_json().encode())
        return len(part)

    def _row(self, name: str, png: str) -> ImageRow:
        try:
            image = decode_image(storage.read_bytes(self.images / name))
        except MissingFileError as error:
            return ImageRow(name=name, reason="missing_file", detail=str(error))
        except DataError as error:
            return ImageRow(name=name, reason="undecodable_image", detail=str(error))
        (prediction,) = self.method.predict([image], self.vocabulary)
        row = ImageRow(name=name, height=image.shape[0], width=image.shape[1])
        if "instance" in self.config.tasks:
            row = row.model_copy(update={"instances": self._instances(prediction)})
        if "panoptic" in self.config.tasks:
            row = row.model_copy(update={"png": png, "segments": self._segments(prediction, png)})
        return row

    def _instances(self, prediction: Prediction) -> tuple[dict[str, Any], ...]:
        found = instances(prediction, self.vocabulary, self.config.segmentation)
        return tuple(_result(region) for region in describe_instances(found, prediction.masks, self.vocabulary).regions)

    def _segments(self, prediction: Prediction, png: str) -> tuple[dict[str, Any], ...]:
        found = panoptic_map(prediction, self.vocabulary, self.config.segmentation)
        storage.write_bytes(self.output / PANOPTIC / png, encode_ids(found.ids))
        return tuple(annotation("", png, found, self.vocabulary)["segments_info"])


def _result(region: Region) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box_xyxy
    score = round(region.score or 0.0, 5)
    return {"category_id": region.category_id, "segmentation": region.rle, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": region.area, "score": score}


@tracked("predict")
def predict(config: PredictConfig) -> dict[str, Any]:
    """Predict the images that have no row yet, then write the results; returns the counts.

    Below the output: ``panoptic.json`` with ``panoptic/``; ``instances.json``, COCO results; ``images.json``, the images and categories that they are of;
    ``rejected.json``, the images without a prediction and why; ``pictures/``. An image that was rejected is tried again by the next run.

    Raises:
        ConfigError: the output was begun with other settings, or is the folder of the images; `category_ids` is of other classes than the vocabulary.
        DataError: there are no images; `image_ids` is no COCO JSON with images.
        StorageError: something cannot be read or written, for a reason that is not one image's.
    """
    started = time.perf_counter()
    paths = {"images": Location.of(config.images).uri, "output": Location.of(config.output).uri, "checkpoint": located(config.checkpoint)}
    config = config.model_copy(update=paths)  # workers have another working directory
    output, vocabulary = Location(config.output), load_vocabulary(config.vocabulary)
    if config.category_ids is not None:
        vocabulary = with_ids_of(config.category_ids, vocabulary)
    ids = image_ids(config)
    check_settings(output, {
        "images": config.images, "checkpoint": config.checkpoint, "method": json.dumps(config.method), "tasks": ", ".join(config.tasks),
        "vocabulary": vocabulary.fingerprint, "segmentation": config.segmentation.model_dump_json(),
    })  # fmt: skip
    done = {row.name for row in read_rows(output) if row.reason is None}
    left = [(name, png) for name, png in png_names(list(ids)).items() if name not in done]
    parts = [left[begin : begin + config.images_per_part] for begin in range(0, len(left), config.images_per_part)]
    counts = over_items(config.pool, partial(Predictor, config, vocabulary), parts, {"images": config.images, "output": config.output})
    for _ in track(chain.from_iterable(map(range, counts)), "predicting", total=len(left)):
        pass
    rows = {row.name: row for row in sorted(read_rows(output), key=lambda row: row.reason is None)}  # of an image with both, the prediction counts
    predicted = [rows[name] for name in ids if rows[name].reason is None]
    rejected = [rows[name] for name in ids if rows[name].reason is not None]
    for file, content in results(predicted, rejected, ids, vocabulary, config.tasks).items():
        storage.write_bytes(output / file, json.dumps(content).encode())
    seconds = time.perf_counter() - started
    return {
        "images": len(predicted), "rejected": dict(sorted(Counter(str(row.reason) for row in rejected).items())),
        "instances": sum(len(row.instances) for row in predicted), "segments": sum(len(row.segments) for row in predicted),
        "images_already_done": len(ids) - len(left), "pictures": draw(config, predicted, vocabulary), "seconds": round(seconds, 1),
    }  # fmt: skip


def image_ids(config: PredictConfig) -> dict[str, str | int]:
    """The images to predict, by path below their folder, with the ids that results call them by."""
    folder, output = Location(config.images), Location(config.output)
    if folder == output:
        raise ConfigError("the output is the folder of the images", seen=config.output, fix="give another folder, which may lie in this one")
    files = storage.list_files(folder, (*ENDINGS, *map(str.upper, ENDINGS)), recursive=True)
    names = [item.uri.removeprefix(f"{folder.uri}/") for item in files if not item.uri.startswith(f"{output.uri}/")]
    if config.image_ids is not None:
        return _listed_ids(Location.of(config.image_ids), names)
    if not names:
        raise DataError("there are no images", seen=folder.uri, allowed=f"files ending {', '.join(ENDINGS)}, at any depth")
    stems = [PurePosixPath(name).stem for name in names]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return dict(zip(names, numbers if len(set(numbers)) == len(names) else range(1, len(names) + 1), strict=True))


def _listed_ids(listing: Location, names: Sequence[str]) -> dict[str, str | int]:
    """Ids by a COCO JSON, in its order; an image lies where its ``file_name`` says or, at any depth, has its name."""
    by_name = {PurePosixPath(name).name: name for name in names} | {name: name for name in names}
    try:
        images = [(str(item["file_name"]), item["id"]) for item in json.loads(storage.read_bytes(listing))["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("not a list of images", seen=listing.uri, allowed="COCO JSON: images with id and file_name") from error
    if not images:
        raise DataError("the list has no images", seen=listing.uri)
    return {by_name.get(name, by_name.get(PurePosixPath(name).name, name)): number for name, number in images}


def png_names(names: Sequence[str]) -> dict[str, str]:
    """The PNG of each image: its path with another ending; with its own before it where two images differ in that alone."""
    bare = {name: name.removesuffix(PurePosixPath(name).suffix) for name in names}
    counts = Counter(bare.values())
    return {name: f"{stem if counts[stem] == 1 else name}.png" for name, stem in bare.items()}


def read_rows(output: Location) -> list[ImageRow]:
    """The rows of all parts that are committed."""
    parts = (storage.read_bytes(item) for item in storage.list_files(output / PARTS, ".json"))
    return [row for data in parts for row in Rows.model_validate_json(data).rows]


def results(
    predicted: Sequence[ImageRow], rejected: Sequence[ImageRow], ids: Mapping[str, str | int], vocabulary: Vocabulary, tasks: Sequence[Output]
) -> dict[str, Any]:
    """The content of each result file, by its name."""
    images = [{"id": ids[row.name], "file_name": row.name, "height": row.height, "width": row.width} for row in predicted]
    listed = {"images": images, "categories": categories(vocabulary)}
    files: dict[str, Any] = {"images.json": listed, "rejected.json": [row.model_dump(include={"name", "reason", "detail"}) for row in rejected]}
    if "instance" in tasks:
        files["instances.json"] = [{"image_id": ids[row.name], "file_name": row.name, **item} for row in predicted for item in row.instances]
    if "panoptic" in tasks:
        annotations = [{"image_id": ids[row.name], "file_name": row.png, "segments_info": row.segments} for row in predicted]
        files["panoptic.json"] = {**listed, "annotations": annotations}
    return files


def draw(config: PredictConfig, predicted: Sequence[ImageRow], vocabulary: Vocabulary) -> list[str]:
    """Draw some of the images, spread over all, with their panoptic segments or else their instances; returns the files below the output."""
    chosen = sorted({round(place) for place in np.linspace(0, len(predicted) - 1, min(config.pictures, len(predicted)))})
    names = []
    for number, row in enumerate(predicted[index] for index in chosen):
        image = decode_image(storage.read_bytes(Location(config.images) / row.name))
        masks, words = _found(config, row, vocabulary)
        names.append(f"pictures/{number:03d}_{PurePosixPath(row.name).stem}.png")
        picture = encode_picture(draw_masks(image, masks, words))
        storage.write_bytes(Location(config.output) / names[-1], picture)
        open_run().log_bytes(names[-1], picture)
    return names


def _found(config: PredictConfig, row: ImageRow, vocabulary: Vocabulary) -> tuple[RunLengthMasks, list[str]]:
    """Masks of a row with their words and scores."""
    size = (row.height, row.width)
    words = {category.id: category.name for category in vocabulary.categories}
    items = row.segments if row.png else row.instances
    labels = [f"{words[item['category_id']]} {item['score']:.2f}" for item in items]
    if row.png is None:
        return RunLengthMasks.from_coco([item["segmentation"] for item in items], size), labels
    ids = decode_ids(storage.read_bytes(Location(config.output) / PANOPTIC / row.png))
    dense = np.stack([ids == item["id"] for item in items]) if items else np.zeros((0, *size), bool)
    return RunLengthMasks.from_dense(torch.from_numpy(dense)), labels
