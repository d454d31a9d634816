"""Training samples through Arrow: the same batch comes out, bit for bit."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from uniovseg.data.regions import view_regions
from uniovseg.data.sample_table import (
    ENTITY_SCHEMA,
    MASK_SCHEMA,
    PAIR_SCHEMA,
    entity_samples,
    entity_table,
    images,
    mask_samples,
    mask_table,
    pair_samples,
    pair_table,
)
from uniovseg.data.samples import MaskSampleConfig, collate, make_mask_sample
from uniovseg.data.views import ViewConfig
from uniovseg.records import EntitySample, ImageEntities, ImageMasks, MaskBatch, MaskSample, PairSample


@pytest.fixture(scope="module")
def samples(scenes: list[ImageMasks]) -> list[MaskSample]:
    """Three samples: a usual one, one with few masks, and one without any (all masks are too small for it)."""
    view = ViewConfig(size=64)
    return [
        make_mask_sample(scenes[0], view, MaskSampleConfig(), 1),
        make_mask_sample(scenes[1], view, MaskSampleConfig(max_masks=2), 2),
        make_mask_sample(scenes[2], view, MaskSampleConfig(min_area_ratio=0.9, max_area_ratio=1.0), 3),
    ]


def assert_equal(found: MaskBatch, expected: MaskBatch) -> None:
    assert (found.keys, found.seeds, found.views) == (expected.keys, expected.seeds, expected.views)
    assert torch.equal(found.images, expected.images)
    assert found.images.dtype == torch.uint8
    for mine, theirs in zip(found.masks, expected.masks, strict=True):
        assert mine == theirs
        assert mine.size == theirs.size
    for a, b in zip(found.boxes_xyxy, expected.boxes_xyxy, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.float32


def test_round_trip(samples: list[MaskSample]) -> None:
    assert [len(sample.masks) for sample in samples][1:] == [2, 0]
    seeded = [dataclasses.replace(sample, seed=2**62 + index) for index, sample in enumerate(samples)]  # seeds have 63 bits
    table = mask_table(seeded)
    assert table.schema == MASK_SCHEMA
    assert_equal(collate(mask_samples(table)), collate(seeded))


def test_slices_and_chunks(samples: list[MaskSample]) -> None:
    """Ray cuts and joins blocks as it likes."""
    table = mask_table(samples)
    assert_equal(collate(mask_samples(table.slice(1, 2))), collate(samples[1:]))
    chunked = pa.concat_tables([table.slice(2, 1), table.slice(0, 1)])
    assert_equal(collate(mask_samples(chunked)), collate([samples[2], samples[0]]))


def test_images_stay_where_they_are(samples: list[MaskSample]) -> None:
    """All pixels of a table are one tensor in its own memory; blocks that Ray joins are copied once."""
    table = mask_table(samples)
    pixels = table.column("image").chunk(0).buffers()[2]
    for begin, length in ((0, 3), (1, 2), (2, 1)):
        found = images(table.slice(begin, length))
        assert torch.equal(found, torch.from_numpy(np.stack([sample.image for sample in samples[begin : begin + length]])))
        assert found.data_ptr() == pixels.address + begin * found[0].numel()
    chunked = pa.concat_tables([table.slice(2, 1), table.slice(0, 1)])
    assert torch.equal(images(chunked), torch.from_numpy(np.stack([samples[2].image, samples[0].image])))
    joined = collate(mask_samples(table), images(table))
    assert_equal(joined, collate(samples))


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_may_be_written_to(samples: list[MaskSample], shared: bool) -> None:
    """Arrow's buffers are read-only and may be shared between processes; the batch owns its values, but for images that stay where they are."""
    table = mask_table(samples)
    batch = collate(mask_samples(table), images(table) if shared else None)
    if not shared:
        batch.images.zero_()
    batch.masks[0].ends.zero_()
    batch.boxes_xyxy[0].zero_()
    assert_equal(collate(mask_samples(table)), collate(samples))


def test_views_that_are_flipped_and_arrays_that_are_not_contiguous(scenes: list[ImageMasks]) -> None:
    sample = make_mask_sample(scenes[3], ViewConfig(size=64, hflip=1.0), MaskSampleConfig(), 4)
    assert sample.view.scale_xy[0] < 0
    turned = dataclasses.replace(sample, image=np.asfortranarray(sample.image))
    assert_equal(collate(mask_samples(mask_table([turned]))), collate([sample]))


def test_pairs_come_back_too(samples: list[MaskSample]) -> None:
    made = [
        PairSample(
            key=sample.key,
            image=sample.image,
            regions=view_regions(sample.masks, sample.view),
            entities=tuple(f"thing {i}" for i in range(len(sample.masks))),
        )
        for sample in samples
    ]
    table = pair_table(made)
    assert table.schema == PAIR_SCHEMA
    for found, expected in zip(pair_samples(table), made, strict=True):
        assert (found.key, found.entities) == (expected.key, expected.entities)
        assert torch.equal(found.regions, expected.regions)
        np.testing.assert_array_equal(found.image, expected.image)


def test_entities_come_back_too(samples: list[MaskSample]) -> None:
    made = [
        EntitySample(
            record=ImageEntities(key=sample.key, image=bytes([0, 255, number]), caption="été", entities=("a red star",) * number),
            image=sample.image,
            view=sample.view,
        )
        for number, sample in enumerate(samples)
    ]
    table = entity_table(made)
    assert table.schema == ENTITY_SCHEMA
    for found, expected in zip(entity_samples(table.slice(1)), made[1:], strict=True):
        assert (found.record, found.view) == (expected.record, expected.view)
        np.testing.assert_array_equal(found.image, expected.image)
