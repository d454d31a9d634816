"""The library's front door.

>>> segmenter = Segmenter.load("shapes")
>>> image = segmenter.embed("photo.jpg")
>>> segmenter.points(image, [(40, 60)], vocabulary="cat, dog")[0].word
>>> segmenter.segment(image, ["cat", "wooden table", "grass"], task="panoptic").regions
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from uniovseg import checkpoint
from uniovseg.config import merge, validate
from uniovseg.data.images import decode_image
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import CheckpointError, DataError
from uniovseg.methods.catalog import METHODS
from uniovseg.methods.promptable import EmbeddedImage, PromptableSegmenter
from uniovseg.models.clip import ClipConfig, check_digest
from uniovseg.models.mask_decoder import MaskEmbeddings
from uniovseg.open_vocabulary import SegmentationConfig, instances, panoptic_map, semantic_map
from uniovseg.records import Prediction, Vocabulary
from uniovseg.segments import Segment, Segmentation, Task, describe_instances, describe_masks, describe_named, describe_panoptic, describe_semantic

ImageLike = str | Path | Image.Image | NDArray[np.uint8]
VocabularyLike = Vocabulary | str | Sequence[str]

DEFAULTS = SegmentationConfig()


class Segmenter:
    """Segments images by points, by boxes, by words, or everything. Make one with `load`.

    Every call takes an image (a path, a PIL image, an RGB array [H, W, 3] of uint8) or what `embed` made of it; embed once to prompt many times.
    Where a call takes a vocabulary, it is a `Vocabulary` or what `uniovseg.data.vocabulary.load_vocabulary` reads: a packaged name, a file, words. Scores are
    a softmax over its classes: they say which of the words fits best, and only `SegmentationConfig.unknown_below` says that none does.
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

    def points(
        self,
        image: ImageLike | EmbeddedImage,
        points: ArrayLike,
        labels: ArrayLike | None = None,
        vocabulary: VocabularyLike | None = None,
        config: SegmentationConfig = DEFAULTS,
    ) -> list[Segment]:
        """Segment what points show.

        Args:
            image: the image.
            points: (x, y) in pixels, [n, 2].
            labels: [n] of 1 (inside, at least one) and 0 (outside): all points together describe one mask. None: each point is a prompt of its own
                and gives its best mask that contains it (`PromptableSegmenter.best_at_points`). One point inside is the same either way.
            vocabulary: the words that masks are named by; None: no names.
            config: ``unknown_below``.

        Raises:
            DataError: points of another shape, not finite, or outside the image; labels that do not fit; no such vocabulary.
        """
        embedded = self._embedded(image)
        points_xy = _checked(points, 2, "points", embedded)
        if labels is None:
            return self._segments(embedded, self.method.best_at_points(embedded, points_xy), vocabulary, config)
        marks = torch.from_numpy(_numbers(labels, "labels")).to(points_xy.device).flatten()
        if len(marks) != len(points_xy) or not bool(((marks == 0) | (marks == 1)).all()):
            raise DataError(
                "labels do not fit the points", seen=marks.tolist()[:8], allowed=f"{len(points_xy)} values, each 0 (outside) or 1 (inside)"
            )
        if not bool((marks == 1).any()):
            raise DataError(
                "labels name no point inside", seen=marks.tolist()[:8], allowed="at least one 1: points outside say what a mask leaves out"
            )
        return self._segments(embedded, self.method.best_of_point_set(embedded, points_xy, marks), vocabulary, config)

    def boxes(
        self,
        image: ImageLike | EmbeddedImage,
        boxes_xyxy: ArrayLike,
        vocabulary: VocabularyLike | None = None,
        config: SegmentationConfig = DEFAULTS,
    ) -> list[Segment]:
        """Segment the thing in each box [n, 4] of pixels x0, y0, x1, y1, and name it where a vocabulary is given.

        Raises:
            DataError: a box that is not finite, empty, or outside the image; no such vocabulary.
        """
        embedded = self._embedded(image)
        boxes = _checked(boxes_xyxy, 4, "boxes_xyxy", embedded)
        if bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            raise DataError("a box is empty", seen=boxes.tolist()[:4], allowed="x0 < x1 and y0 < y1")
        return self._segments(embedded, self.method.embed_boxes(embedded, boxes).flat(), vocabulary, config)

    def everything(
        self,
        image: ImageLike | EmbeddedImage,
        points_per_side: int | None = None,
        vocabulary: VocabularyLike | None = None,
        config: SegmentationConfig = DEFAULTS,
    ) -> list[Segment]:
        """Segment everything that a grid of points finds, best predicted IoU first, without near-duplicates, and name it where a vocabulary is given."""
        embedded = self._embedded(image)
        return self._described(embedded, self.method.propose(embedded, points_per_side), vocabulary, config)

    def segment(
        self, image: ImageLike | EmbeddedImage, vocabulary: VocabularyLike, task: Task = "panoptic", config: SegmentationConfig = DEFAULTS
    ) -> Segmentation:
        """Segment an image into the classes of a vocabulary.

        Args:
            image: the image.
            vocabulary: the classes.
            task: ``semantic``: a class for every pixel; ``panoptic``: things apart, stuff together; ``instance``: things, which may overlap.
            config: thresholds.

        Raises:
            DataError: no such vocabulary or task.
        """
        if task not in get_args(Task):
            raise DataError("no such task", seen=task, allowed=", ".join(get_args(Task)))
        classes, embedded = _vocabulary(vocabulary), self._embedded(image)
        prediction = self._named(embedded, self.method.propose(embedded), classes)
        if task == "semantic":
            return describe_semantic(semantic_map(prediction, config), classes)
        if task == "panoptic":
            return describe_panoptic(panoptic_map(prediction, classes, config), classes)
        return describe_instances(instances(prediction, classes, config), prediction.masks, classes)

    def _segments(
        self, embedded: EmbeddedImage, decoded: MaskEmbeddings, vocabulary: VocabularyLike | None, config: SegmentationConfig
    ) -> list[Segment]:
        masks = self.method.masks(embedded, decoded)
        prediction = Prediction(masks=masks, quality=decoded.iou_probs.float().cpu(), class_scores=torch.zeros(len(masks), 0))
        return self._described(embedded, prediction, vocabulary, config)

    def _described(
        self, embedded: EmbeddedImage, prediction: Prediction, vocabulary: VocabularyLike | None, config: SegmentationConfig
    ) -> list[Segment]:
        if vocabulary is None:
            return describe_masks(prediction.masks, prediction.quality)
        classes = _vocabulary(vocabulary)
        return describe_named(self._named(embedded, prediction, classes), classes, config)

    def _named(self, embedded: EmbeddedImage, prediction: Prediction, vocabulary: Vocabulary) -> Prediction:
        return dataclasses.replace(prediction, class_scores=self.method.classify(embedded, prediction.masks, vocabulary))

    def _embedded(self, image: ImageLike | EmbeddedImage) -> EmbeddedImage:
        return image if isinstance(image, EmbeddedImage) else self.embed(image)


def _vocabulary(source: VocabularyLike) -> Vocabulary:
    return source if isinstance(source, Vocabulary) else load_vocabulary(source)


def load_method(folder: Path, changes: Mapping[str, Any] | None = None) -> PromptableSegmenter:
    """Rebuild the method of a checkpoint folder, with changed settings where given, and load its weights; evaluation mode, on the CPU."""
    info = checkpoint.read_info(folder)
    name = info.method.get("name")
    if name not in METHODS:
        raise CheckpointError("the checkpoint is of an unknown method", seen=name, allowed=", ".join(METHODS))
    entry = METHODS[str(name)]
    settings = merge(info.method, dict(changes or {}))
    method = entry.build(validate(entry.config_type, settings), 0)
    check_digest(validate(ClipConfig, settings.get("clip", {})), info.clip_digest)
    state = checkpoint.read_weights(folder)
    checkpoint.load_weights(method, state, set(method.state()))
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
