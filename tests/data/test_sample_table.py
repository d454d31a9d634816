"""Training samples through Arrow: the same batch comes out, bit for bit."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from uniovseg.data.sample_table import SAMPLE_SCHEMA, to_batch, to_table
from uniovseg.data.samples import MaskSampleConfig, collate, make_mask_sample
from uniovseg.data.views import ViewConfig
from uniovseg.records import ImageMasks, MaskBatch, MaskSample


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
    seeds = [0, 2**62 + 1, 7]  # seeds have 63 bits
    assert [len(sample.masks) for sample in samples][1:] == [2, 0]
    table = to_table(samples, seeds)
    assert table.schema == SAMPLE_SCHEMA
    assert_equal(to_batch(table), collate(samples, seeds))


def test_slices_and_chunks(samples: list[MaskSample]) -> None:
    """Ray cuts and joins blocks as it likes."""
    table = to_table(samples, [1, 2, 3])
    assert_equal(to_batch(table.slice(1, 2)), collate(samples[1:], [2, 3]))
    chunked = pa.concat_tables([table.slice(2, 1), table.slice(0, 1)])
    assert_equal(to_batch(chunked), collate([samples[2], samples[0]], [3, 1]))


def test_a_batch_may_be_written_to(samples: list[MaskSample]) -> None:
    """Arrow's buffers are read-only and may be shared between processes; the batch owns its values."""
    table = to_table(samples, [1, 2, 3])
    batch = to_batch(table)
    batch.images.zero_()
    batch.masks[0].ends.zero_()
    batch.boxes_xyxy[0].zero_()
    assert_equal(to_batch(table), collate(samples, [1, 2, 3]))


def test_views_that_are_flipped_and_arrays_that_are_not_contiguous(scenes: list[ImageMasks]) -> None:
    sample = make_mask_sample(scenes[3], ViewConfig(size=64, hflip=1.0), MaskSampleConfig(), 4)
    assert sample.view.scale_xy[0] < 0
    turned = MaskSample(key=sample.key, image=np.asfortranarray(sample.image), view=sample.view, masks=sample.masks, boxes_xyxy=sample.boxes_xyxy)
    assert_equal(to_batch(to_table([turned], [9])), collate([sample], [9]))
