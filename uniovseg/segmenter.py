"""The library's front door.

>>> segmenter = Segmenter.load("shapes")
>>> image = segmenter.embed("photo.jpg")
>>> segmenter.points(image, [(40, 60)])[0].predicted_iou
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from uniovseg import checkpoint
from uniovseg.config import merge, validate
from uniovseg.data.images import decode_image
from uniovseg.errors import CheckpointError, DataError
from uniovseg.methods.catalog import METHODS
from uniovseg.methods.promptable import EmbeddedImage, PromptableSegmenter
from uniovseg.models.clip import CHECKPOINT
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.postprocess import masks_from_logits

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One mask of an image.

    Attributes:
        rle: COCO RLE, ``{"size": [h, w], "counts": str}``, at the image's own resolution.
        predicted_iou: the model's own estimate of the mask's IoU, in [0, 1].
        box_xyxy: tight box in pixels, x1 and y1 exclusive; zeros for an empty mask.
        area: number of pixels.
    """

    rle: dict[str, Any]
    predicted_iou: float
    box_xyxy: tuple[int, int, int, int]
    area: int

    def mask(self) -> NDArray[np.bool_]:
        """The mask as an array [h, w]."""
        height, width = self.rle["size"]
        dense: NDArray[np.bool_] = RunLengthMasks.from_coco([self.rle], (height, width)).to_dense()[0].numpy()
        return dense


class Segmenter:
    """Segments images by points, by boxes, or everything. Make one with `load`.

    Every call takes an image (a path, a PIL image, an RGB array [H, W, 3] of uint8) or what `embed` made of it; embed once to prompt many times.
    """

    def __init__(self, method: PromptableSegmenter) -> None:
        self.method = method

    @classmethod
    def load(cls, uri: str | Path = "shapes", device: str = "cpu", changes: Mapping[str, Any] | None = None) -> "Segmenter":
        """Load a checkpoint.

        Args:
            uri: a checkpoint folder (local path or s3://), or ``"shapes"`` for the model of the shapes world that comes with the package.
            device: torch device.
            changes: settings of the method that differ from the checkpoint's, such as ``{"size": 896}``; those that shape its weights must not.

        Raises:
            CheckpointError: there is no checkpoint, or it is not one of a promptable method, or its weights do not fit the changes.
            ConfigError: a change is no setting of the method.
        """
        with checkpoint.opened(uri) as folder:
            method = load_method(folder, changes)
        if not isinstance(method, PromptableSegmenter):
            raise CheckpointError(
                "the checkpoint's method takes no prompts", seen=type(method).__name__, allowed="a checkpoint of stage 1 or stage 2"
            )
        return cls(method.to(device).eval())

    def embed(self, image: ImageLike) -> EmbeddedImage:
        """Compute an image's features once, for many prompts. Raises DataError when it is no image."""
        return self.method.embed(to_array(image))

    def points(self, image: ImageLike | EmbeddedImage, points: ArrayLike, labels: ArrayLike | None = None) -> list[Segment]:
        """Segment what points show.

        Args:
            image: the image.
            points: (x, y) in pixels, [n, 2].
            labels: [n] of 1 (inside) and 0 (outside): all points together describe one mask. None: each point is a prompt of its own and gives its
                best mask by predicted IoU.

        Raises:
            DataError: points of another shape, not finite, or outside the image; labels that do not fit.
        """
        embedded = self._embedded(image)
        points_xy = _checked(points, 2, "points", embedded)
        if labels is None:
            decoded = self.method.embed_points(embedded, points_xy)
            best = decoded.iou_probs.argmax(1)
            rows = torch.arange(len(best), device=best.device)
            return self._segments(embedded, decoded.embeddings[rows, best], decoded.iou_probs[rows, best])
        marks = torch.from_numpy(_numbers(labels, "labels")).to(points_xy.device).flatten()
        if len(marks) != len(points_xy) or not bool(((marks == 0) | (marks == 1)).all()):
            raise DataError(
                "labels do not fit the points", seen=marks.tolist()[:8], allowed=f"{len(points_xy)} values, each 0 (outside) or 1 (inside)"
            )
        decoded = self.method.embed_point_set(embedded, points_xy, marks.long())
        return self._segments(embedded, decoded.embeddings[:, 0], decoded.iou_probs[:, 0])

    def boxes(self, image: ImageLike | EmbeddedImage, boxes_xyxy: ArrayLike) -> list[Segment]:
        """Segment the thing in each box [n, 4] of pixels x0, y0, x1, y1. Raises DataError for a box that is not finite, empty, or outside the image."""
        embedded = self._embedded(image)
        boxes = _checked(boxes_xyxy, 4, "boxes_xyxy", embedded)
        if bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            raise DataError("a box is empty", seen=boxes.tolist()[:4], allowed="x0 < x1 and y0 < y1")
        decoded = self.method.embed_boxes(embedded, boxes)
        return self._segments(embedded, decoded.embeddings[:, 0], decoded.iou_probs[:, 0])

    def everything(self, image: ImageLike | EmbeddedImage, points_per_side: int | None = None) -> list[Segment]:
        """Segment everything that a grid of points finds, best predicted IoU first, without near-duplicates."""
        embedded = self._embedded(image)
        prediction = self.method.propose(embedded, points_per_side)
        return _describe(prediction.masks, prediction.quality)

    def _segments(self, embedded: EmbeddedImage, embeddings: Tensor, ious: Tensor) -> list[Segment]:
        logits = self.method.mask_logits(embedded, embeddings)
        return _describe(masks_from_logits(logits, embedded.view, embedded.size), ious)

    def _embedded(self, image: ImageLike | EmbeddedImage) -> EmbeddedImage:
        return image if isinstance(image, EmbeddedImage) else self.embed(image)


def masks_of(segments: Sequence[Segment], embedded: EmbeddedImage) -> RunLengthMasks:
    """The segments' masks as run lengths, for drawing or measuring."""
    return RunLengthMasks.from_coco([segment.rle for segment in segments], embedded.size)


def load_method(folder: Path, changes: Mapping[str, Any] | None = None) -> PromptableSegmenter:
    """Rebuild the method of a checkpoint folder, with changed settings where given, and load its weights; evaluation mode, on the CPU."""
    info = checkpoint.read_info(folder)
    name = info.method.get("name")
    if name not in METHODS:
        raise CheckpointError("the checkpoint is of an unknown method", seen=name, allowed=", ".join(METHODS))
    entry = METHODS[str(name)]
    method = entry.build(validate(entry.config_type, merge(info.method, dict(changes or {}))), 0)
    state = checkpoint.read_weights(folder)
    expected = set(method.state())
    if info.method.get("clip", {}).get("weights") == CHECKPOINT:
        expected |= {name for name in method.state_dict() if name.startswith("clip.")}
    checkpoint.load_weights(method, state, expected)
    return method.eval()  # type: ignore[return-value]


def to_array(image: ImageLike) -> NDArray[np.uint8]:
    """An RGB array [H, W, 3] of uint8 from a path, a PIL image or an array. Raises DataError for anything else."""
    if isinstance(image, str | Path):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise DataError("the image cannot be read", seen=image, fix=str(error.strerror)) from error
        return decode_image(data)
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError("the array is not an image", seen=f"{array.dtype} {array.shape}", allowed="uint8 [H, W, 3], RGB")
    return array


def _checked(values: ArrayLike, width: int, what: str, embedded: EmbeddedImage) -> Tensor:
    array = _numbers(values, what)
    if array.ndim == 1 and array.size == width:
        array = array[None]
    height, side = embedded.size
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise DataError(f"{what} has the wrong shape", seen=array.shape, allowed=f"[n, {width}], n at least 1")
    limits = np.tile([side, height], width // 2)
    if not np.isfinite(array).all() or (array < 0).any() or (array > limits).any():
        raise DataError(f"{what} lies outside the image", seen=array.tolist()[:4], allowed=f"x from 0 to {side}, y from 0 to {height}")
    return torch.from_numpy(array).to(embedded.pixel.mask_features.device)


def _numbers(values: ArrayLike, what: str) -> NDArray[np.float32]:
    try:
        return np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} cannot be read as an array of numbers", seen=values) from error


def _describe(masks: RunLengthMasks, quality: Tensor) -> list[Segment]:
    masks = masks.to("cpu")
    return [
        Segment(rle=rle, predicted_iou=float(iou), box_xyxy=tuple(box), area=int(area))
        for rle, iou, box, area in zip(masks.to_coco(), quality.tolist(), masks.boxes_xyxy().tolist(), masks.area().tolist(), strict=True)
    ]
