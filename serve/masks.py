"""Masks as they travel: COCO RLE, one PNG for all of them, or polygons along the pixels' edges."""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from uniovseg.api import CocoRle, IdMap, MaskFormat, Polygons, Segment
from uniovseg.deadline import in_time
from uniovseg.ops.run_length import RunLengthMasks


class Found(NamedTuple):
    """A mask of an image before it is written: the fields of `Segment`, with `rle` as COCO writes it and the box as x0, y0, x1, y1 in pixels."""

    rle: dict[str, Any]
    box_xyxy: tuple[int, int, int, int]
    area: int
    label: str | None = None
    label_index: int | None = None
    thing: bool | None = None
    score: float | None = None
    predicted_iou: float | None = None


def write_segments(found: Sequence[Found], form: MaskFormat) -> tuple[Segment, ...]:
    """Segments with ids from 1, their masks in the form asked for. Raises TimeoutError as `in_time`."""
    return tuple(
        Segment(
            id=rank,
            label=item.label,
            label_index=item.label_index,
            thing=item.thing,
            score=item.score,
            predicted_iou=item.predicted_iou,
            bbox=(item.box_xyxy[0], item.box_xyxy[1], item.box_xyxy[2] - item.box_xyxy[0], item.box_xyxy[3] - item.box_xyxy[1]),
            area=item.area,
            mask=_mask(item, form),
        )
        for rank, item in enumerate(in_time(found), 1)
    )


def write_id_map(found: Sequence[Found], size: tuple[int, int]) -> IdMap:
    """The masks of an image of `size` (h, w) in one PNG; the first is on top. Raises TimeoutError as `in_time`."""
    ids = np.zeros(size, np.uint8 if len(found) < 256 else np.uint16)
    for above, item in enumerate(in_time(found[::-1])):
        x0, y0, x1, y1 = item.box_xyxy
        ids[y0:y1, x0:x1][_inside(item)] = len(found) - above
    done, data = cv2.imencode(".png", ids, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done, "an id map is a grey image"
    return IdMap(type="png8" if ids.dtype == np.uint8 else "png16", data=base64.b64encode(data.tobytes()).decode())


def _mask(item: Found, form: MaskFormat) -> CocoRle | Polygons | None:
    height, width = item.rle["size"]
    if form == "coco_rle":
        return CocoRle(size=(height, width), counts=item.rle["counts"])
    if form == "polygon":
        x0, y0, _, _ = item.box_xyxy
        outlines = trace(_inside(item)) if item.area else []
        return Polygons(size=(height, width), polygons=tuple(tuple((outline + np.array([x0, y0])).ravel().tolist()) for outline in outlines))
    return None


def _inside(item: Found) -> NDArray[np.bool_]:
    """The mask within its box: only the runs of the box's columns are laid out."""
    x0, y0, x1, y1 = item.box_xyxy
    height, width = item.rle["size"]
    ends = RunLengthMasks.from_coco([item.rle], (height, width)).ends.numpy().clip(x0 * height, x1 * height)
    ones = np.arange(len(ends)) % 2 == 1
    return np.repeat(ones, np.diff(ends, prepend=x0 * height)).reshape(x1 - x0, height).T[y0:y1]


def trace(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The outlines of a mask [h, w] along the edges of its pixels: corners (x, y) in order, [n, 2] each, for filling by the even-odd rule.

    A point of the pixels' lattice is a corner when an odd number of the four pixels around it is inside, and two corners when two diagonal ones are. Along
    each row and each column of the lattice, edges join the first and second corner, the third and fourth, and so on; walking along rows and columns in turn
    gives the outlines.
    """
    grid = np.pad(mask, 1).astype(np.int8)
    around = grid[:-1, :-1] + grid[:-1, 1:] + grid[1:, :-1] + grid[1:, 1:]
    corners = (around % 2) + 2 * ((around == 2) & (grid[:-1, :-1] == grid[1:, 1:]))
    ys, xs = np.nonzero(corners)
    times = corners[ys, xs]
    ys, xs = np.repeat(ys, times), np.repeat(xs, times)
    along_row, along_column = _partners(np.lexsort((xs, ys))), _partners(np.lexsort((ys, xs)))
    left = np.ones(len(xs), bool)
    outlines = []
    for start in range(len(xs)):
        walk: list[int] = []
        at = start
        while left[at]:
            other = along_row[at]
            left[at] = left[other] = False
            walk += [at, other]
            at = along_column[other]
        if walk:
            outlines.append(np.stack([xs[walk], ys[walk]], axis=1))
    return outlines


def _partners(order: NDArray[np.intp]) -> list[int]:
    """What each item is joined to when the first and second of an order belong together, the third and fourth, ..."""
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    found: list[int] = partner.tolist()
    return found
