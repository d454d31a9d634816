"""Pairs: storage and training samples."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from uniovseg.data import pairs
from uniovseg.data.views import ViewConfig, draw_view, source_window
from uniovseg.errors import DataError
from uniovseg.records import ImagePairs

PLAIN = ViewConfig(size=64, hflip=0.0, scale=(1.0, 1.0), colour_jitter=False)


@pytest.fixture
def record() -> ImagePairs:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    dense = np.zeros((40, 60, 3), np.uint8, order="F")
    dense[2:10, 3:20, 0] = dense[20:38, 30:58, 1] = dense[:5, :5, 2] = 1
    costs = rng.random((2, 3, 2), dtype=np.float32)
    return ImagePairs(
        key="a", image=cv2.imencode(".png", image)[1].tobytes(), height=40, width=60, counts=tuple(item["counts"] for item in coco_mask.encode(dense)),
        quality=np.array([0.9, 0.8, 0.7], np.float32), entities=("a red star", "grass"), sizes=(64, 96), costs=costs,
        pairs=np.array([[1, 0], [0, 1]]), pair_costs=np.array([0.1, 0.3], np.float32),
    )  # fmt: skip


def test_a_table_gives_the_records_back(record: ImagePairs) -> None:
    none = dataclasses.replace(
        record, key="b", counts=(), quality=np.zeros(0, np.float32), costs=np.zeros((2, 0, 2), np.float32),
        pairs=np.zeros((0, 2), np.int64), pair_costs=np.zeros(0, np.float32),
    )  # fmt: skip
    table = pairs.to_table([record, none], ["a.parquet"] * 2, [0, 1])
    for row, expected in enumerate([record, none]):
        found = pairs.to_record(table, row)
        for field in dataclasses.fields(ImagePairs):
            a, b = getattr(found, field.name), getattr(expected, field.name)
            if isinstance(b, np.ndarray):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype and a.shape == b.shape
            else:
                assert a == b


def test_a_sample_holds_the_masks_and_their_phrases(record: ImagePairs) -> None:
    sample = pairs.make_pair_sample(record, PLAIN, seed=3)
    assert sample.entities == ("a red star", "grass")
    # 60 x 40 pixels fill 64 x 43 of the view's four cells; neither mask covers one by half, so that each takes the one it covers most.
    assert sample.regions.tolist() == [[[False, True], [False, False]], [[True, False], [False, False]]]
    assert sample.image.shape == (3, 64, 64)
    batch = pairs.collate([sample, sample])
    assert batch.images.shape == (2, 3, 64, 64) and batch.keys == ("a", "a") and batch.entities[1] == sample.entities


def test_masks_out_of_view_are_left_out(record: ImagePairs) -> None:
    zoomed = ViewConfig(size=64, hflip=0.5, scale=(3.0, 3.0), colour_jitter=True)
    counts = set()
    ys, xs = np.mgrid[:40, :60] + 0.5
    for seed in range(40):
        sample = pairs.make_pair_sample(record, zoomed, seed)
        x0, y0, x1, y1 = source_window(draw_view(zoomed, 40, 60, np.random.default_rng(seed)))
        shown = (xs >= x0) & (xs < x1) & (ys >= y0) & (ys < y1)
        inside = [(coco_mask.decode({"size": [40, 60], "counts": record.counts[mask]})[shown]).any() for mask, _ in record.pairs]
        assert sample.entities == tuple(record.entities[entity] for (_, entity), seen in zip(record.pairs, inside, strict=True) if seen)
        assert len(sample.regions) == len(sample.entities)
        counts.add(len(sample.regions))
    assert counts == {0, 1, 2} or counts == {0, 1}


def test_an_image_of_another_size_is_refused(record: ImagePairs) -> None:
    with pytest.raises(DataError, match="not of the size"):
        pairs.make_pair_sample(dataclasses.replace(record, width=61), PLAIN, 0)


def test_pairs_keep_their_order_of_trust(record: ImagePairs) -> None:
    turned = dataclasses.replace(record, pairs=record.pairs[::-1].copy())
    sample = pairs.make_pair_sample(turned, PLAIN, seed=3)
    assert sample.entities == ("grass", "a red star")
    assert torch.equal(sample.regions, pairs.make_pair_sample(record, PLAIN, seed=3).regions.flip(0))
