"""COCO formats: panoptic and instance annotations to image-mask records, and image-mask records to SA-1B tars.

A labelled set serves two ends: without its labels it is image-mask data to train on, and its masks are ground truth for promptable evaluation.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from uniovseg import storage
from uniovseg.data.panoptic import decode_ids
from uniovseg.data.sa1b import DefectError, check_image
from uniovseg.errors import DataError, MissingFileError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImageMasks, Rejected
from uniovseg.storage import Location

FARTHEST = 1e6
"""Pixels from the origin to a corner of a polygon, at most along each axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoImage:
    """One image of a COCO set with its annotations, not yet read.

    Attributes:
        key: the file's name without its ending, with its folder where it has one; unique in a set.
        image: location of the image file.
        height, width: as the annotation file says; None where it does not.
        segments: instance annotations (``segmentation``, ``iscrowd``) or panoptic segments (``id``, ``iscrowd``).
        panoptic: location of the PNG of segment ids; None for instances.
    """

    key: str
    image: Location
    height: int | None
    width: int | None
    segments: tuple[Mapping[str, Any], ...]
    panoptic: Location | None = None


def read_annotations(annotations: str | Path, images: str | Path, panoptic: str | Path | None = None) -> list[CocoImage]:
    """The images of a COCO JSON file, in its order.

    Args:
        annotations: the JSON file: instances (``annotations`` with ``segmentation``) or panoptic (``segments_info``).
        images: folder of the image files.
        panoptic: folder of the panoptic PNGs; None: a folder beside the JSON file with its name.

    Raises:
        DataError: the file is not COCO JSON.
    """
    location = Location.of(annotations)
    try:
        parsed = json.loads(storage.read_bytes(location))
        entries, notes = parsed["images"], parsed["annotations"]
        by_image: dict[str, list[Mapping[str, Any]]] = {str(entry["id"]): [] for entry in entries}
        png: dict[str, str] = {}
        for note in notes:
            image_id = str(note["image_id"])  # ids may be numbers in one place and text in another
            if image_id not in by_image:
                raise ValueError(f"an annotation is of image {image_id!r}, which is not among the images")
            if "segments_info" in note:
                if image_id in png:
                    raise ValueError(f"image {image_id!r} has two annotations")
                png[image_id] = note["file_name"]
            by_image[image_id] += [{**item, "id": int(item["id"])} for item in note["segments_info"]] if "segments_info" in note else [note]
        folder = Location.of(panoptic) if panoptic else Location.of(location.uri.removesuffix(".json"))
        return [
            CocoImage(
                key=entry["file_name"].rpartition(".")[0] or entry["file_name"],
                image=Location.of(images) / entry["file_name"],
                height=entry.get("height"),
                width=entry.get("width"),
                segments=tuple(by_image[str(entry["id"])]),
                panoptic=folder / png[str(entry["id"])] if str(entry["id"]) in png else None,
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "not a COCO annotation file", seen=f"{location.uri}: {type(error).__name__} {error}", allowed="images, annotations"
        ) from error


def load_image(item: CocoImage, *, decode: bool = False) -> ImageMasks | Rejected:
    """Read an image and its masks. Crowds and segments of no pixel are left out.

    Returns:
        A record; or a rejection when a file is missing or broken, or sizes differ.

    Raises:
        StorageError: a file is there but cannot be read.
    """
    try:
        data = _read(item.image, "missing_image")
        height, width = check_image(data, decode=decode)
        if (item.height or height, item.width or width) != (height, width):
            raise DefectError("size_mismatch", "the annotation is of another size", seen=(item.height, item.width), allowed=(height, width))
        masks = _panoptic_masks(item, (height, width)) if item.panoptic else _instance_masks(item, (height, width))
    except DefectError as defect:
        return Rejected(key=item.key, source=item.image.uri, offset=0, reason=defect.reason, detail=str(defect)[:300])
    counts = tuple(masks.to_counts())
    unknown = (float("nan"),) * len(counts)
    return ImageMasks(key=item.key, image=data, height=height, width=width, counts=counts, predicted_iou=unknown, stability_score=unknown)


def _read(location: Location, reason: str) -> bytes:
    try:
        return storage.read_bytes(location)
    except MissingFileError as error:
        raise DefectError(reason, str(error)) from error


def _panoptic_masks(item: CocoImage, size: tuple[int, int]) -> RunLengthMasks:
    assert item.panoptic is not None
    data = _read(item.panoptic, "missing_annotation")
    try:
        ids = decode_ids(data)
    except DataError as error:
        raise DefectError("bad_mask", str(error)) from error
    if ids.shape != size:
        raise DefectError("size_mismatch", "the panoptic PNG is of another size", seen=ids.shape, allowed=size)
    dense = [ids == segment["id"] for segment in item.segments if not segment.get("iscrowd", 0)]
    present = [mask for mask in dense if mask.any()]
    return RunLengthMasks.from_dense(torch.from_numpy(np.stack(present))) if present else RunLengthMasks.empty(size)


def _instance_masks(item: CocoImage, size: tuple[int, int]) -> RunLengthMasks:
    parts = [_instance_mask(note["segmentation"], size) for note in item.segments if not note.get("iscrowd", 0) and note.get("segmentation")]
    masks = RunLengthMasks.cat(parts) if parts else RunLengthMasks.empty(size)
    return masks.select(torch.nonzero(masks.area()).flatten())


def _instance_mask(segmentation: Any, size: tuple[int, int]) -> RunLengthMasks:
    """A mask from polygons, or compressed or uncompressed run lengths. Raises DefectError."""
    try:
        if isinstance(segmentation, dict):
            return RunLengthMasks.from_coco([segmentation], size)
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return RunLengthMasks.from_runs([[size[0] * size[1]]], size)
        if not all((np.abs(polygon) <= FARTHEST).all() for polygon in polygons):  # pycocotools would end the process
            raise DefectError(
                "bad_mask", "a corner of a polygon is no number, or far outside the image", allowed=f"from {-FARTHEST:g} to {FARTHEST:g}"
            )
        merged = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size))
        return RunLengthMasks.from_counts([merged["counts"]], size)
    except (DataError, ValueError, TypeError, KeyError) as error:
        raise DefectError("bad_mask", str(error)) from error


def write_sa1b_tars(records: Iterable[ImageMasks], folder: Path, per_tar: int, number: Callable[[int], int] = lambda index: index + 1) -> list[Path]:
    """Write records in the layout of SA-1B: ``sa_000000.tar``, ... of ``sa_N.jpg`` and ``sa_N.json``, N = ``number(index)``.

    The JSON holds what SA-1B's holds: the image's id, size and name, and for each mask its id, COCO RLE, box (XYWH), area, predicted IoU,
    stability, the crop box and a point inside. Equal records give equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    archive: tarfile.TarFile | None = None
    for index, record in enumerate(records):
        if index % per_tar == 0:
            if archive is not None:
                archive.close()
            paths.append(folder / f"sa_{index // per_tar:06d}.tar")
            archive = tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed when the next one opens
        assert archive is not None
        image_id = number(index)
        for ending, data in (("jpg", record.image), ("json", sa1b_json(record, image_id))):
            info = tarfile.TarInfo(f"sa_{image_id}.{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    if archive is not None:
        archive.close()
    return paths


def sa1b_json(record: ImageMasks, image_id: int) -> bytes:
    """The annotation file of one record, as SA-1B writes it."""
    size = (record.height, record.width)
    masks = RunLengthMasks.from_counts(record.counts, size)
    points = _points_inside(masks)
    annotations = [
        {
            "id": image_id * 1000 + index,
            "segmentation": {"size": list(size), "counts": counts.decode("ascii")},
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "predicted_iou": _plain(iou),
            "stability_score": _plain(stability),
            "crop_box": [0, 0, record.width, record.height],
            "point_coords": [point],
        }
        for index, (counts, (x0, y0, x1, y1), area, iou, stability, point) in enumerate(
            zip(record.counts, masks.boxes_xyxy().tolist(), masks.area().tolist(), record.predicted_iou, record.stability_score, points, strict=True)
        )
    ]
    image = {"image_id": image_id, "width": record.width, "height": record.height, "file_name": f"sa_{image_id}.jpg"}
    return json.dumps({"image": image, "annotations": annotations}).encode()


def _plain(value: float) -> float:
    return 1.0 if np.isnan(value) else round(float(value), 4)  # JSON has no NaN; a labelled set's masks are certain


def _points_inside(masks: RunLengthMasks) -> Sequence[list[float]]:
    """The centre of the first pixel of each mask."""
    height = masks.size[0]
    second = masks.splits[:-1]
    starts = masks.ends[second] - torch.arange(len(masks)) * (masks.size[0] * masks.size[1])
    return [[int(start) // height + 0.5, int(start) % height + 0.5] for start in starts]


def iter_records(items: Iterable[CocoImage]) -> Iterator[ImageMasks]:
    """The records of all images that can be read; raises DataError at one that cannot (evaluation must not skip silently)."""
    for item in items:
        record = load_image(item)
        if isinstance(record, Rejected):
            raise DataError(f"image {record.key} cannot be used: {record.detail}", seen=record.source)
        yield record
