"""What the service asks of a model, in the words of the HTTP contract: plain synchronous calls, no Ray and no HTTP.

One thread at a time may use an engine.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from serve.masks import Found
from serve.problems import ServiceError
from serve.settings import ModelSource
from uniovseg import checkpoint
from uniovseg.api import (
    EverythingRequest,
    ImageRequest,
    Limits,
    ModelInfo,
    ModelRef,
    NamingRequest,
    PromptRequest,
    SegmentRequest,
    VocabularyInfo,
    VocabularyRef,
    Word,
)
from uniovseg.data.vocabulary import PACKAGED, load_vocabulary
from uniovseg.deadline import deadline
from uniovseg.errors import DataError
from uniovseg.methods.promptable import EmbeddedImage
from uniovseg.models.text_classifier import template_set
from uniovseg.open_vocabulary import UNKNOWN, SegmentationConfig
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Category, Vocabulary
from uniovseg.segmenter import Segmenter
from uniovseg.segments import Region
from uniovseg.segments import Segment as NamedMask

ROUNDING = 1e-6
"""Pixels that a point or a box may lie beyond the image: what is given in percent seldom ends exactly at the edge."""


class Answered(NamedTuple):
    """What an engine found: masks in the order of the answer, the vocabulary that named them, and what the client should know."""

    found: tuple[Found, ...]
    vocabulary: VocabularyRef | None
    warnings: tuple[str, ...]


class Engine:
    """A loaded model.

    Args:
        segmenter: the model.
        reference: what it is called in answers.
        limits: most segments of an answer.
    """

    def __init__(self, segmenter: Segmenter, reference: ModelRef, limits: Limits) -> None:
        self.segmenter, self.reference, self.limits = segmenter, reference, limits

    @classmethod
    def load(cls, source: ModelSource, device: str, limits: Limits, batch: int = 1) -> "Engine":
        """Load a model and run it once, on so many images too as come together at most: the first request finds it warm, and its memory taken.

        Raises:
            CheckpointError, ConfigError, StorageError: as `Segmenter.load`.
        """
        with opened_checkpoint(source.checkpoint) as folder:
            segmenter = Segmenter.load(folder, device, source.changes)
            version = fingerprint(folder, source)
        place = source.checkpoint.rstrip("/")
        name = place if place.startswith(checkpoint.REGISTERED) else place.rpartition("/")[2]
        engine = cls(segmenter, ModelRef(name=source.name, version=version, checkpoint=name), limits)
        grey = np.full((64, 64, 3), 128, np.uint8)
        engine.embed([grey] * batch)
        engine.answer(engine.embed([grey])[0], PromptRequest(points=((32.0, 32.0),), vocabulary=("thing",)))
        return engine

    @property
    def info(self) -> ModelInfo:
        """What `GET /v1/models` says of it."""
        config = self.segmenter.method.config
        regions = config.regions
        return ModelInfo(
            **self.reference.model_dump(),
            method=str(config.model_dump()["name"]),
            size=config.size,
            scales=regions.sizes,
            templates=regions.templates,
        )

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[EmbeddedImage]:
        """The features of RGB images [h, w, 3] of any sizes, in one call."""
        return self.segmenter.method.embed_many(images)

    def answer(self, embedded: EmbeddedImage, request: ImageRequest, until: float = math.inf) -> Answered:
        """Do what a request asks for on an image, by `until` (`time.monotonic`).

        Raises:
            ServiceError: points or boxes outside the image, a vocabulary that cannot be used or is too much work.
            TimeoutError: the time is over before a batch of prompts, a chunk of sentences, a scale, or some masks at the image's size.
        """
        assert isinstance(request, NamingRequest), request
        if isinstance(request, PromptRequest):
            check_inside(request, embedded.size)
        vocabulary = vocabulary_of(request)
        if vocabulary is not None and (request.vocabulary_id is None or isinstance(request.templates, tuple)):
            self._check_sentences(request, vocabulary)
        try:
            with deadline(until):
                found = self._found(embedded, request, vocabulary)
        except DataError as error:
            raise ServiceError("invalid_request", str(error)) from error
        most = min(request.max_segments or self.limits.segments, self.limits.segments)
        warnings = (f"more segments were found than max_segments; the first {most} are here",) if len(found) > most else ()
        named = None
        if vocabulary is not None:
            named = VocabularyRef(id=request.vocabulary_id, fingerprint=vocabulary.fingerprint, classes=len(vocabulary))
        return Answered(tuple(found[:most]), named, warnings)

    def _check_sentences(self, request: NamingRequest, vocabulary: Vocabulary) -> None:
        """Bound the work of the text tower. Raises ServiceError."""
        default = len(template_set(request.templates if isinstance(request.templates, str) else self.segmenter.method.config.regions.templates))
        sentences = sum(len(item.synonyms) * (len(item.templates) if item.templates else default) for item in vocabulary.categories)
        if sentences > self.limits.sentences:
            raise ServiceError("limit_exceeded", "words times templates are too many", seen=sentences, allowed=self.limits.sentences)

    def _found(self, embedded: EmbeddedImage, request: NamingRequest, vocabulary: Vocabulary | None) -> list[Found]:
        segmenter, config = self._segmenter(request), SegmentationConfig(unknown_below=request.unknown_below)
        if isinstance(request, SegmentRequest):
            assert vocabulary is not None, "a segment request names a vocabulary"
            return _segmented(segmenter, embedded, request, vocabulary, self.limits.segments)
        masks: list[NamedMask] = []
        if isinstance(request, EverythingRequest):
            everything = segmenter.everything(embedded, request.points_per_side, vocabulary, config)
            masks = [item for item in everything if item.predicted_iou >= request.threshold]
        elif isinstance(request, PromptRequest):
            if request.points:
                masks += segmenter.points(embedded, request.points, request.labels, vocabulary, config)
            if request.boxes:
                corners = [(x, y, x + width, y + height) for x, y, width, height in request.boxes]
                masks += segmenter.boxes(embedded, corners, vocabulary, config)
        places: dict[str, int] = {}
        for index, category in enumerate(vocabulary.categories if vocabulary else ()):
            places.setdefault(category.name, index)
        return [_of_mask(item, places, vocabulary) for item in masks]

    def _segmenter(self, request: NamingRequest) -> Segmenter:
        """The model with the naming that the request asks for; its weights are shared."""
        method = self.segmenter.method
        changes = {"sizes": request.scales, "templates": request.templates if isinstance(request.templates, str) else None}
        asked = {key: value for key, value in changes.items() if value is not None}
        return Segmenter(method.with_settings({"regions": asked})) if asked else self.segmenter


def _segmented(segmenter: Segmenter, embedded: EmbeddedImage, request: SegmentRequest, vocabulary: Vocabulary, most: int) -> list[Found]:
    config = SegmentationConfig(
        unknown_below=request.unknown_below,
        min_score=request.threshold,
        min_visible=request.min_visible,
        max_instances=min(request.max_segments or most, most) + 1,
    )
    result = segmenter.segment(embedded, vocabulary, request.task, config)
    found = [_of_region(region) for region in result.regions]
    if request.include_unknown and result.ids is not None:
        rest = RunLengthMasks.from_dense(torch.from_numpy(result.ids == (UNKNOWN if request.task == "semantic" else 0))[None])
        area = int(rest.area()[0])
        if area:
            x0, y0, x1, y1 = rest.boxes_xyxy()[0].tolist()
            found.append(Found(rest.to_coco()[0], (x0, y0, x1, y1), area))
    return found


def check_inside(request: PromptRequest, size: tuple[int, int]) -> None:
    """Refuse points and boxes that lie outside an image of `size` (h, w). Raises ServiceError."""
    height, width = size
    corners = [("points", (x, y), (x, y)) for x, y in request.points] + [("boxes", (x, y, w, h), (x + w, y + h)) for x, y, w, h in request.boxes]
    for what, seen, (right, bottom) in corners:
        if not (0 <= seen[0] <= right <= width + ROUNDING and 0 <= seen[1] <= bottom <= height + ROUNDING):
            raise ServiceError(
                "invalid_request", f"{what}: outside the image", seen=str(list(seen)), allowed=f"x from 0 to {width}, y from 0 to {height}"
            )


def _of_region(region: Region) -> Found:
    return Found(region.rle, region.box_xyxy, region.area, region.word, region.class_index, region.is_thing, region.score)


def _of_mask(item: NamedMask, places: dict[str, int], vocabulary: Vocabulary | None) -> Found:
    index = None if item.word is None else places[item.word]
    thing = None if index is None or vocabulary is None else vocabulary.categories[index].is_thing
    return Found(item.rle, item.box_xyxy, item.area, item.word, index, thing, item.score, item.predicted_iou)


def vocabulary_of(request: NamingRequest) -> Vocabulary | None:
    """The classes that a request names; None where it names none. Raises ServiceError where there is no vocabulary of the id."""
    own = request.templates if isinstance(request.templates, tuple) else None
    if request.vocabulary_id is not None:
        classes = packaged(request.vocabulary_id).categories
        if own:
            classes = tuple(Category(item.id, item.name, item.synonyms, item.is_thing, own) for item in classes)
        return Vocabulary(request.vocabulary_id, classes)
    if request.vocabulary is None:
        return None
    words = [Word(name=word) if isinstance(word, str) else word for word in request.vocabulary]
    return Vocabulary(
        "words",
        tuple(
            Category(index, word.name, tuple(dict.fromkeys((word.name, *word.synonyms))), word.thing, word.templates or own)
            for index, word in enumerate(words)
        ),
    )


@functools.lru_cache(maxsize=len(PACKAGED))
def _packaged(name: str) -> Vocabulary:
    return load_vocabulary(name)


def packaged(name: str) -> Vocabulary:
    """The vocabulary of a name that comes with the package; no other name is looked at. Raises ServiceError."""
    if name not in PACKAGED:
        raise ServiceError("invalid_vocabulary", "there is no vocabulary of this id", seen=name, allowed=list(PACKAGED))
    return _packaged(name)


def vocabularies() -> tuple[VocabularyInfo, ...]:
    """All vocabularies that a request can name."""
    return tuple(
        VocabularyInfo(id=name, classes=len(item), things=sum(category.is_thing for category in item.categories), fingerprint=item.fingerprint)
        for name, item in ((name, packaged(name)) for name in PACKAGED)
    )


@contextmanager
def opened_checkpoint(uri: str) -> Iterator[Path]:
    """A checkpoint as a local folder: a folder, an s3:// URI, ``shapes``, or a model of the registry that MLFLOW_TRACKING_URI names.

    Raises:
        CheckpointError, StorageError: there is none, or it cannot be read.
    """
    if not uri.startswith(checkpoint.REGISTERED):
        with checkpoint.opened(uri) as folder:
            yield folder
        return
    from uniovseg.runtime import registry, tracking  # with what they draw pictures with, which only such a URI needs

    with registry.opened(uri, tracking.TrackingConfig().resolve()) as folder:
        yield folder


def fingerprint(folder: Path, source: ModelSource) -> str:
    """12 hexadecimal digits of a checkpoint's manifest and weights and of the changes to its settings."""
    digest = hashlib.sha256(repr(sorted(source.changes.items())).encode())
    for name in (checkpoint.MANIFEST, checkpoint.MODEL):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
