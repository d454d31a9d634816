"""The COCO panoptic form: a JSON of segments, and a PNG an image whose colours are segment ids (R + 256 G + 65536 B; 0 is void)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uniovseg import storage
from uniovseg.errors import DataError
from uniovseg.records import Category, PanopticMap, PanopticSegment, PanopticTruth, TruthSegment, Vocabulary
from uniovseg.storage import Location

IdMap = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticEntry:
    """One image's annotation, its PNG not yet read.

    Attributes:
        image_id: as text, since files differ in whether ids are numbers.
        png: file name of the map of segment ids.
        image: file name of the image; None where the JSON lists no images (predictions).
        segments: ``id``, ``category_id``, and for ground truth ``iscrowd`` and ``area``.
    """

    image_id: str
    png: str
    image: str | None
    segments: tuple[Mapping[str, Any], ...]


def read_entries(annotations: Location) -> tuple[Vocabulary | None, list[PanopticEntry]]:
    """The categories of a panoptic JSON file (None where it has none, as predictions may), and its annotations in order.

    Raises:
        StorageError: the file cannot be read.
        DataError: it is no panoptic JSON, or an image has two annotations.
    """
    data = storage.read_bytes(annotations)
    try:
        parsed = json.loads(data)
        names = {str(item["id"]): str(item["file_name"]) for item in parsed.get("images", [])}
        entries = [
            PanopticEntry(
                image_id=str(item["image_id"]),
                png=str(item["file_name"]),
                image=names.get(str(item["image_id"])),
                segments=tuple(
                    {**segment, "id": int(segment["id"]), "category_id": int(segment["category_id"])} for segment in item["segments_info"]
                ),
            )
            for item in parsed["annotations"]
        ]
        vocabulary = _vocabulary(annotations.name, parsed["categories"]) if parsed.get("categories") else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "not a panoptic annotation file",
            seen=f"{annotations.uri}: {type(error).__name__} {error}",
            allowed="annotations with image_id, file_name, segments_info",
        ) from error
    seen: set[str] = set()
    for entry in entries:
        if entry.image_id in seen:
            raise DataError("an image has two annotations", seen=f"{entry.image_id} in {annotations.uri}")
        seen.add(entry.image_id)
    return vocabulary, entries


def _vocabulary(name: str, categories: Iterable[Mapping[str, Any]]) -> Vocabulary:
    rows = [Category(int(item["id"]), str(item["name"]), (str(item["name"]),), bool(item.get("isthing", 1))) for item in categories]
    return Vocabulary(name.removesuffix(".json"), tuple(rows))


def category_indices(vocabulary: Vocabulary) -> dict[int, int]:
    """The class index of each category id."""
    return {category.id: index for index, category in enumerate(vocabulary.categories)}


def truth_of(entry: PanopticEntry, ids: IdMap, indices: Mapping[int, int]) -> PanopticTruth:
    """Ground truth of an annotation and its map. A segment without an area has that of its pixels. Raises DataError for an unknown category."""
    segments = []
    for segment in entry.segments:
        area = int(segment["area"]) if "area" in segment else int((ids == segment["id"]).sum())
        segments.append(TruthSegment(segment["id"], _class_index(entry, segment, indices), area, bool(segment.get("iscrowd", 0))))
    return PanopticTruth(ids, tuple(segments))


def prediction_of(entry: PanopticEntry, ids: IdMap, indices: Mapping[int, int]) -> PanopticMap:
    """The prediction that an annotation and its map describe. Raises DataError for an unknown category."""
    segments = [PanopticSegment(item["id"], _class_index(entry, item, indices), float(item.get("score", 1.0))) for item in entry.segments]
    return PanopticMap(ids, tuple(segments))


def _class_index(entry: PanopticEntry, segment: Mapping[str, Any], indices: Mapping[int, int]) -> int:
    category = int(segment["category_id"])
    if category not in indices:
        raise DataError(
            f"segment {segment['id']} of image {entry.image_id} is of an unknown category",
            seen=category,
            allowed=f"the {len(indices)} categories' ids",
        )
    return indices[category]


def semantic_truth(truth: PanopticTruth, unlabelled: int) -> NDArray[np.int32]:
    """[H, W] class indices of a panoptic ground truth, crowds included; `unlabelled` where there is no segment."""
    listed = np.array([0, *(segment.id for segment in truth.segments)], np.int64)
    classes = np.array([unlabelled, *(segment.class_index for segment in truth.segments)], np.int32)
    order = np.argsort(listed)
    place = np.searchsorted(listed[order], truth.ids).clip(max=len(listed) - 1)
    found = listed[order][place] == truth.ids
    return np.where(found, classes[order][place], np.int32(unlabelled))


def decode_ids(data: bytes) -> IdMap:
    """The segment ids [H, W] of a panoptic PNG. Raises DataError when it is no RGB image."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if decoded is None or decoded.ndim != 3 or decoded.dtype != np.uint8:
        seen = f"{len(data)} bytes" if decoded is None else f"{decoded.dtype} of shape {decoded.shape}"
        raise DataError("the panoptic PNG cannot be decoded", seen=seen, allowed="8-bit RGB")
    blue, green, red = (decoded[..., channel].astype(np.int32) for channel in range(3))
    ids: IdMap = red + (green << 8) + (blue << 16)
    return ids


def encode_ids(ids: IdMap) -> bytes:
    """A panoptic PNG of segment ids [H, W] in 0 to 2^24 - 1."""
    colours = np.stack([ids >> 16 & 255, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)  # OpenCV's order is BGR
    done, data = cv2.imencode(".png", colours)
    assert done
    return data.tobytes()


def annotation(image_id: str | int, png: str, prediction: PanopticMap, vocabulary: Vocabulary) -> dict[str, Any]:
    """A predicted map's entry among the ``annotations`` of a panoptic JSON file."""
    areas = dict(zip(*(values.tolist() for values in np.unique(prediction.ids, return_counts=True)), strict=True))
    segments = [
        {"id": item.id, "category_id": vocabulary.categories[item.class_index].id, "area": areas[item.id], "score": round(item.score, 4)}
        for item in prediction.segments
    ]
    return {"image_id": image_id, "file_name": png, "segments_info": segments}


def categories(vocabulary: Vocabulary) -> Sequence[dict[str, Any]]:
    """The ``categories`` of a panoptic JSON file."""
    return [{"id": item.id, "name": item.name, "isthing": int(item.is_thing)} for item in vocabulary.categories]
