"""Pictures for people: masks over an image, drawn with supervision."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from uniovseg.errors import StorageError
from uniovseg.ops.run_length import RunLengthMasks

Picture = NDArray[np.uint8]


LABELLED_SIDE = 640
"""An image that gets labels is first enlarged so that its longer side has at least so many pixels."""


def draw_masks(image: Picture, masks: RunLengthMasks, labels: Sequence[str] | None = None, opacity: float = 0.5) -> Picture:
    """The RGB image [H, W, 3] with each mask in a colour of its own, its outline, and its label where labels are given.

    With labels, a small image is enlarged by a whole number, as is the picture.
    """
    if len(masks) == 0:
        return image.copy()
    import supervision as sv  # a second, which jobs that draw nothing need not wait for

    times = -(-LABELLED_SIDE // max(image.shape[:2])) if labels is not None else 1
    image = image.repeat(times, axis=0).repeat(times, axis=1)
    dense = masks.to("cpu").to_dense().numpy().repeat(times, axis=1).repeat(times, axis=2)
    boxes = masks.to("cpu").boxes_xyxy().numpy().astype(np.float32) * times
    detections = sv.Detections(xyxy=boxes, mask=dense, class_id=np.arange(len(dense)))
    scene = sv.MaskAnnotator(color_lookup=sv.ColorLookup.INDEX, opacity=opacity).annotate(image[..., ::-1].copy(), detections)
    scene = sv.PolygonAnnotator(color_lookup=sv.ColorLookup.INDEX, thickness=1).annotate(scene, detections)
    if labels is not None:
        places = sv.Detections(xyxy=np.stack([_deepest(mask) for mask in dense]), class_id=np.arange(len(dense)))
        annotator = sv.LabelAnnotator(color_lookup=sv.ColorLookup.INDEX, text_scale=0.4, text_padding=2, text_position=sv.Position.CENTER)
        scene = annotator.annotate(scene, places, list(labels))
    return np.ascontiguousarray(scene[..., ::-1])


def _deepest(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The pixel of a mask that is farthest from its border, as a box x0, y0, x1, y1 of no extent: where a label is seen to belong to it."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return np.array([x, y, x, y], np.float32)


def tile(pictures: Sequence[Picture], columns: int, side: int) -> Picture:
    """Pictures in a grid of `columns`, each scaled to fit a square of `side` pixels; empty places are white."""
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        scale = side / max(picture.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
        sides = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        small = cv2.resize(picture, sides, interpolation=interpolation)
        y, x = number // columns * side, number % columns * side
        sheet[y : y + small.shape[0], x : x + small.shape[1]] = small
    return sheet


def encode_picture(picture: Picture) -> bytes:
    """An RGB picture as a PNG."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert done
    return data.tobytes()


def save_picture(path: str, picture: Picture) -> None:
    """Write an RGB picture; the ending of the name says the format. Raises StorageError when it cannot be written."""
    if not cv2.imwrite(path, np.ascontiguousarray(picture[..., ::-1])):
        raise StorageError("the picture cannot be written", seen=path, fix="does its folder exist?")
