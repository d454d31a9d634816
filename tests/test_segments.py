"""What is given back, against pycocotools and the maps it is made from."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from uniovseg.data.panoptic import decode_ids
from uniovseg.open_vocabulary import UNKNOWN, Instance, SegmentationConfig
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Category, PanopticMap, PanopticSegment, Prediction, Vocabulary
from uniovseg.segments import (
    Region,
    Segment,
    describe_instances,
    describe_masks,
    describe_named,
    describe_panoptic,
    describe_semantic,
    encode_map,
    masks_of,
)

WORDS = Vocabulary("words", (Category(7, "cat", ("cat",)), Category(3, "grass", ("grass", "lawn"), is_thing=False), Category(9, "dog", ("dog",))))
SIZE = (12, 17)


def random_masks(count: int) -> RunLengthMasks:
    dense = torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(0)) < 0.4
    dense[-1] = False
    return RunLengthMasks.from_dense(dense)


def check(item: Segment | Region, mask: NDArray[np.bool_]) -> None:
    assert item.rle["size"] == list(SIZE)
    assert np.array_equal(coco_mask.decode(item.rle).astype(bool), mask)
    assert np.array_equal(item.mask(), mask)
    assert item.area == mask.sum()
    ys, xs = np.nonzero(mask)
    assert item.box_xyxy == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0))


def test_masks_without_words() -> None:
    masks = random_masks(4)
    found = describe_masks(masks, torch.tensor([0.5, 0.25, 1.0, 0.0]))
    assert [(item.predicted_iou, item.word, item.score) for item in found] == [
        (0.5, None, None),
        (0.25, None, None),
        (1.0, None, None),
        (0.0, None, None),
    ]
    for item, mask in zip(found, masks.to_dense().numpy(), strict=True):
        check(item, mask)
    assert masks_of(found, SIZE) == masks
    assert len(masks_of([], SIZE)) == 0
    assert describe_masks(RunLengthMasks.empty(SIZE), torch.zeros(0)) == []


def test_masks_with_words() -> None:
    scores = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.375, 0.25, 0.375]])
    prediction = Prediction(masks=random_masks(3), quality=torch.tensor([0.5, 0.25, 0.75]), class_scores=scores)
    found = describe_named(prediction, WORDS, SegmentationConfig(unknown_below=0.5))
    assert [(item.word, item.score, item.predicted_iou) for item in found] == [("grass", 0.5, 0.5), ("cat", 0.5, 0.25), (None, 0.375, 0.75)]
    for item, mask in zip(found, prediction.masks.to_dense().numpy(), strict=True):
        check(item, mask)


def test_the_classes_of_a_map() -> None:
    ids = np.random.default_rng(0).choice([UNKNOWN, 0, 2], SIZE).astype(np.int32)
    found = describe_semantic(ids, WORDS)
    assert found.task == "semantic"
    assert found.ids is ids
    assert [(item.id, item.class_index, item.category_id, item.word, item.is_thing, item.score) for item in found.regions] == [
        (0, 0, 7, "cat", True, None),
        (2, 2, 9, "dog", True, None),
    ]
    for item in found.regions:
        check(item, ids == item.class_index)
    assert describe_semantic(np.full(SIZE, UNKNOWN, np.int32), WORDS).regions == ()


@pytest.mark.parametrize(("classes", "depth", "none"), [(3, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 65_535), (847, np.uint16, 65_535)])
def test_maps_of_more_than_255_classes_are_16_bit(classes: int, depth: type, none: int) -> None:
    vocabulary = Vocabulary("many", tuple(Category(index, str(index), (str(index),)) for index in range(classes)))
    for ids in (np.random.default_rng(0).integers(-1, classes, SIZE).astype(np.int32), np.zeros(SIZE, np.int32)):
        stored = cv2.imdecode(np.frombuffer(encode_map(describe_semantic(ids, vocabulary)), np.uint8), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        assert stored.dtype == depth
        assert np.array_equal(stored, np.where(ids == UNKNOWN, none, ids))


def test_a_panoptic_map_is_written_as_colours() -> None:
    ids = np.array([[0, 1, 300], [70_000, 1, 0]], np.int32)
    assert np.array_equal(decode_ids(encode_map(describe_panoptic(PanopticMap(ids, ()), WORDS))), ids)


def test_the_segments_of_a_panoptic_map() -> None:
    ids = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.int32)
    found = describe_panoptic(PanopticMap(ids, (PanopticSegment(1, 1, 0.75), PanopticSegment(2, 0, 0.5))), WORDS)
    assert [(item.id, item.category_id, item.word, item.is_thing, item.score) for item in found.regions] == [
        (1, 3, "grass", False, 0.75),
        (2, 7, "cat", True, 0.5),
    ]
    for item in found.regions:
        check(item, ids == item.id)


def test_instances_have_the_masks_they_were_found_with() -> None:
    masks = random_masks(4)
    found = describe_instances([Instance(2, 0, 0.75), Instance(0, 2, 0.5), Instance(2, 2, 0.25)], masks, WORDS)
    assert found.ids is None
    assert [(item.id, item.word, item.score) for item in found.regions] == [(1, "cat", 0.75), (2, "dog", 0.5), (3, "dog", 0.25)]
    for item, index in zip(found.regions, (2, 0, 2), strict=True):
        check(item, masks.to_dense()[index].numpy())
