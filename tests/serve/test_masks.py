"""Every form of a mask holds the same pixels."""

import base64
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from serve.masks import Found, trace, write_id_map, write_segments
from tests.serve.conftest import decoded_map
from uniovseg.api import CocoRle, Polygons
from uniovseg.deadline import deadline
from uniovseg.ops.run_length import RunLengthMasks


def filled(outlines: list[NDArray[np.int64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Even-odd filling: a pixel is inside when an odd number of vertical edges lies left of it in its row."""
    toggles = np.zeros((size[0], size[1] + 1), bool)
    for outline in outlines:
        for (xa, ya), (xb, yb) in zip(outline.tolist(), np.roll(outline, -1, axis=0).tolist(), strict=True):
            assert (xa == xb) != (ya == yb), "edges run along rows or columns"
            if xa == xb:
                toggles[min(ya, yb) : max(ya, yb), int(xa)] ^= True
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(toggles, axis=1)[:, :-1]
    return inside


def found(mask: NDArray[np.bool_]) -> Found:
    runs = RunLengthMasks.from_dense(torch.from_numpy(mask)[None])
    x0, y0, x1, y1 = runs.boxes_xyxy()[0].tolist()
    return Found(runs.to_coco()[0], (x0, y0, x1, y1), int(runs.area()[0]))


def random_masks() -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    masks = [
        rng.random((int(h), int(w))) < share for h, w, share in zip(rng.integers(1, 12, 60), rng.integers(1, 12, 60), rng.random(60), strict=True)
    ]
    return [*masks, np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(6, dtype=bool)]


def test_outlines_enclose_the_mask() -> None:
    for mask in random_masks():
        assert np.array_equal(filled(trace(mask), (mask.shape[0], mask.shape[1])), mask)


def test_a_hole_is_an_outline_of_its_own() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    outer, inner = sorted(trace(mask), key=lambda outline: int(outline.min()))
    assert sorted(map(tuple, outer.tolist())) == [(0, 0), (0, 5), (5, 0), (5, 5)]
    assert sorted(map(tuple, inner.tolist())) == [(2, 2), (2, 3), (3, 2), (3, 3)]


def test_all_forms_hold_the_same_pixels() -> None:
    masks = [mask for mask in random_masks() if mask.shape == (3, 4)]
    masks += [np.pad(mask[:2, :3], ((1, 0), (0, 1))) for mask in random_masks() if mask.shape[0] > 2 and mask.shape[1] > 3]
    items = [found(mask) for mask in masks]
    for mask, rle, polygon, none in zip(masks, *(write_segments(items, form) for form in ("coco_rle", "polygon", "none")), strict=True):
        assert isinstance(rle.mask, CocoRle)
        assert np.array_equal(coco_mask.decode({"size": list(rle.mask.size), "counts": rle.mask.counts.encode()}), mask)
        assert isinstance(polygon.mask, Polygons)
        outlines = [np.array(flat).reshape(-1, 2).astype(np.int64) for flat in polygon.mask.polygons]
        assert np.array_equal(filled(outlines, (3, 4)), mask)
        assert none.mask is None
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()) if len(xs) else (0, 0, 0, 0)
        assert rle.bbox == box
        assert rle.area == mask.sum()
    assert [segment.id for segment in write_segments(items, "none")] == list(range(1, len(items) + 1))


def test_writing_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts the masks that were begun."""
    items = [found(np.ones((3, 4), bool))] * 5
    for write in (lambda: write_segments(items, "polygon"), lambda: write_id_map(items, (3, 4))):
        clock = SimpleNamespace(monotonic=itertools.count().__next__)
        monkeypatch.setattr("uniovseg.deadline.time", clock)
        with deadline(2), pytest.raises(TimeoutError):
            write()
        assert clock.monotonic() == 3
        write()


@pytest.mark.parametrize("count", [0, 3, 300])
def test_in_an_id_map_the_first_is_on_top(count: int) -> None:
    rng = np.random.default_rng(1)
    masks = [rng.random((40, 50)) < 0.02 for _ in range(count)]
    written = write_id_map([found(mask) for mask in masks], (40, 50))
    ids = decoded_map(base64.b64decode(written.data))
    assert written.type == ("png16" if count > 255 else "png8")
    assert ids.dtype == (np.uint16 if count > 255 else np.uint8)
    expected = np.zeros((40, 50), int)
    for rank in reversed(range(count)):
        expected[masks[rank]] = rank + 1
    assert np.array_equal(ids, expected)
