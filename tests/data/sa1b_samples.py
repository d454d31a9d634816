"""Small SA-1B samples for tests, whole and damaged in every way that ingest must find."""

import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from uniovseg.data.coco import sa1b_json
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImageMasks

Files = dict[str, bytes]


def make_record(number: int, size: tuple[int, int] = (24, 32)) -> ImageMasks:
    """A noise image with three random blobs, by number."""
    rng = np.random.default_rng(number)
    height, width = size
    encoded = cv2.imencode(".jpg", rng.integers(0, 256, (height, width, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    masks = torch.from_numpy(cv2.resize(rng.random((3, 4, 3)).transpose(1, 2, 0), (width, height)).transpose(2, 0, 1) > 0.5)
    counts = tuple(RunLengthMasks.from_dense(masks).to_counts())
    scores = tuple(np.round(rng.uniform(0.8, 1, 3), 4).tolist())
    return ImageMasks(
        key=f"sa_{number}", image=encoded.tobytes(), height=height, width=width, counts=counts, predicted_iou=scores, stability_score=scores
    )


def make_files(number: int) -> Files:
    """The members of the sample, by ending."""
    record = make_record(number)
    return {"jpg": record.image, "json": sa1b_json(record, number)}


def _annotation(files: Files, change: Callable[[dict[str, Any]], object]) -> Files:
    parsed = json.loads(files["json"])
    change(parsed)
    return files | {"json": json.dumps(parsed).encode()}


def _longer_run(parsed: dict[str, Any]) -> None:
    height, width = parsed["image"]["height"], parsed["image"]["width"]
    parsed["annotations"][1]["segmentation"]["counts"] = (
        RunLengthMasks.from_runs([[height * width + 1]], (1, height * width + 1)).to_counts()[0].decode()
    )


def _wider(parsed: dict[str, Any]) -> None:
    parsed["image"]["width"] += 1


def _taller_mask(parsed: dict[str, Any]) -> None:
    parsed["annotations"][0]["segmentation"]["size"][0] += 1


DAMAGES: dict[str, tuple[str, Callable[[Files], Files]]] = {
    "half a JPEG": ("truncated_image", lambda files: files | {"jpg": files["jpg"][: len(files["jpg"]) // 2]}),
    "a JPEG of its first bytes": ("truncated_image", lambda files: files | {"jpg": files["jpg"][:60]}),
    "an empty image": ("bad_image", lambda files: files | {"jpg": b""}),
    "half a JSON": ("bad_json", lambda files: files | {"json": files["json"][: len(files["json"]) // 2]}),
    "a JSON without annotations": ("bad_json", lambda files: _annotation(files, lambda parsed: parsed.pop("annotations"))),
    "runs that sum to too much": ("bad_mask", lambda files: _annotation(files, _longer_run)),
    "another size of the image": ("size_mismatch", lambda files: _annotation(files, _wider)),
    "another size of a mask": ("size_mismatch", lambda files: _annotation(files, _taller_mask)),
    "no annotation": ("missing_annotation", lambda files: {"jpg": files["jpg"]}),
    "no image": ("missing_image", lambda files: {"json": files["json"]}),
}
"""The reason that must be given, and the damage, by name."""
