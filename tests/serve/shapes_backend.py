"""A backend without a model: it knows the sample scenes by their files and answers with their true masks. What it was asked is written down."""

import hashlib
from collections import deque

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from serve.calls import Call, Description, NeedsImage, Outcome, Reply
from serve.engine import vocabularies
from serve.images import image_size
from serve.masks import Found, write_segments
from serve.problems import ServiceError
from serve.samples import sample_scene
from uniovseg.api import EverythingRequest, ModelInfo, ModelRef, NamingRequest, PromptRequest, SegmentRequest
from uniovseg.data.shapes import CLASS_NAMES, Scene, SceneConfig, encode_image

Mask = NDArray[np.bool_]

MODEL = ModelInfo(name="uniovseg", version="0123456789ab", checkpoint="truth", method="truth", size=384, scales=(384,), templates="simple")


class Truth:
    """A `serve.calls.Backend` and a `serve.calls.ImageStore` in one.

    Attributes:
        calls: what was asked, features of images included (``request`` None).
        faults: raised one by one by the next calls.
    """

    def __init__(self, seeds: range) -> None:
        self.calls: list[Call] = []
        self.faults: deque[ServiceError] = deque()
        self.files: dict[str, bytes] = {}
        self._scenes = {_digest(encode_image(scene.image, SceneConfig().jpeg_quality)): scene for scene in map(sample_scene, seeds)}

    async def call(self, call: Call) -> Reply:
        if self.faults:
            raise self.faults.popleft()
        file = call.image if call.image is not None else self.files.get(call.image_id or "")
        if file is None:
            return NeedsImage()
        self.calls.append(call)
        model = ModelRef(name=MODEL.name, version=MODEL.version, checkpoint=MODEL.checkpoint)
        size = image_size(file)
        scene = self._scenes.get(_digest(file))
        found = found_in(scene, call.request) if scene and call.request else []
        return Outcome(model=model, size=size, segments=write_segments(found, "coco_rle"))

    async def describe(self) -> Description:
        return Description(MODEL, vocabularies())

    async def get(self, image_id: str) -> bytes | None:
        return self.files.get(image_id)

    async def put(self, image_id: str, image: bytes) -> None:
        self.files[image_id] = image

    async def touch(self, image_id: str) -> None:
        pass

    @property
    def requests(self) -> list[NamingRequest]:
        """What was asked of images."""
        return [call.request for call in self.calls if call.request]

    @property
    def uploads(self) -> int:
        """How often an image was sent."""
        return sum(call.request is None for call in self.calls)


def parts(scene: Scene) -> list[tuple[str, Mask]]:
    """Names and masks of all that can be seen; they tile the image."""
    whole = [(item.class_index, item.mask) for item in scene.objects] + list(scene.grounds)
    return [(CLASS_NAMES[index], mask) for index, mask in whole]


def found_in(scene: Scene, request: NamingRequest) -> list[Found]:
    """The right answer."""
    words = [word if isinstance(word, str) else word.name for word in request.vocabulary or ()]
    if isinstance(request, SegmentRequest):
        return [_found(mask, name, words.index(name), score=0.9) for name, mask in parts(scene) if name in words]
    masks = [mask for _, mask in parts(scene)]
    if isinstance(request, PromptRequest):
        masks = [_of_points(masks, request)] if request.points else []
        masks += [max((mask for _, mask in parts(scene)), key=lambda mask: _box_iou(mask, box)) for box in request.boxes]
    assert isinstance(request, PromptRequest | EverythingRequest)
    names = [next((name for name, other in parts(scene) if name in words and (other == mask).all()), None) for mask in masks]
    return [_found(mask, name, words.index(name) if name else None, predicted_iou=0.95) for mask, name in zip(masks, names, strict=True)]


def _of_points(masks: list[Mask], request: PromptRequest) -> Mask:
    """What the positive points lie in, without what the negative ones lie in."""
    result = np.zeros_like(masks[0])
    for value in (1, 0):
        for (x, y), label in zip(request.points, request.labels or (), strict=True):
            for mask in masks:
                if label == value and mask[int(y), int(x)]:
                    result = result | mask if value else result & ~mask
    return result


def _box_iou(mask: Mask, box: tuple[float, float, float, float]) -> float:
    return float(coco_mask.iou([_bbox(mask)], [list(box)], [0])[0][0])


def _bbox(mask: Mask) -> list[float]:
    return [float(value) for value in coco_mask.toBbox(_encoded(mask))]


def _encoded(mask: Mask) -> dict[str, object]:
    rle: dict[str, object] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle


def _found(mask: Mask, label: str | None, index: int | None, score: float | None = None, predicted_iou: float | None = None) -> Found:
    rle = _encoded(mask)
    assert isinstance(rle["counts"], bytes)
    x, y, width, height = (int(value) for value in _bbox(mask))
    text = {"size": list(mask.shape), "counts": rle["counts"].decode()}
    return Found(text, (x, y, x + width, y + height), int(mask.sum()), label, index, None if label is None else True, score, predicted_iou)


def _digest(file: bytes) -> str:
    return hashlib.sha256(file).hexdigest()
