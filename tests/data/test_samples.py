"""Records to samples: which masks are kept and where their boxes lie, against masks that are decoded and looked up pixel by pixel."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uniovseg.data.samples import MaskSampleConfig, boxes_in_view, collate, make_mask_sample, sample_seed
from uniovseg.data.views import ViewConfig, source_window
from uniovseg.errors import DataError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImageMasks, MaskSample, View

HEIGHT, WIDTH = 120, 160
VIEW = ViewConfig(size=64, scale=(0.5, 1.8), colour_jitter=False)


def blobs(count: int, seed: int) -> NDArray[np.bool_]:
    """[count, HEIGHT, WIDTH] ellipses, from a pixel to larger than the image."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for mask in masks:
        centre = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
        axes = tuple(int(side) for side in np.exp(rng.uniform(0, np.log(120), 2)))
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return masks.astype(bool)


def record_of(masks: NDArray[np.bool_], image: NDArray[np.uint8] | None = None, form: str = ".jpg") -> ImageMasks:
    image = np.full((*masks.shape[1:], 3), 90, np.uint8) if image is None else image
    return ImageMasks(
        key="sa_1",
        image=cv2.imencode(form, image)[1].tobytes(),
        height=masks.shape[1],
        width=masks.shape[2],
        counts=tuple(RunLengthMasks.from_dense(torch.from_numpy(masks)).to_counts()),
        predicted_iou=(0.9,) * len(masks),
        stability_score=(0.9,) * len(masks),
    )


def in_window(view: View) -> NDArray[np.bool_]:
    """[HEIGHT, WIDTH]: source pixels whose centre the view shows."""
    x0, y0, x1, y1 = source_window(view)
    xs, ys = np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5
    return ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))[None]


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_kept_by_the_area_that_is_seen(seed: int) -> None:
    masks = blobs(30, seed)
    config = MaskSampleConfig(min_area_ratio=0.004, max_area_ratio=0.5, max_masks=99)
    sample = make_mask_sample(record_of(masks), VIEW, config, seed)
    seen = masks & in_window(sample.view)
    pixels_a_pixel = abs(sample.view.scale_xy[0]) * sample.view.scale_xy[1]
    ratio = seen.sum((1, 2)) / pixels_a_pixel / 64**2
    kept = np.flatnonzero((ratio >= 0.004) & (ratio <= 0.5))
    assert 0 < len(kept) < 30
    assert np.array_equal(sample.masks.to_dense().numpy(), masks[kept])  # whole masks: the view only looks at them
    assert sample.boxes_xyxy.dtype == torch.float32
    for mask, box in zip(seen[kept], sample.boxes_xyxy.tolist(), strict=True):
        assert box == pytest.approx(slow_box(mask, sample.view), abs=1e-4)


def slow_box(seen: NDArray[np.bool_], view: View) -> list[float]:
    """The tight box of a source mask in view pixels: every pixel's corners mapped, then cut at what the view shows."""
    y, x = np.nonzero(seen)
    corners = np.concatenate([np.stack([x, y], 1), np.stack([x + 1, y + 1], 1)])
    mapped = (corners - view.offset_xy) / view.scale_xy
    low, high = mapped.min(0), mapped.max(0)
    return [max(low[0], 0), max(low[1], 0), min(high[0], view.valid_xyxy[2]), min(high[1], view.valid_xyxy[3])]


@pytest.mark.parametrize("form", [".jpg", ".png"])
@pytest.mark.parametrize("scale", [(0.1, 0.3), (0.8, 1.2), (1.5, 2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_image_and_labels_fall_on_each_other(form: str, scale: tuple[float, float], seed: int) -> None:
    """The image is its own mask drawn in white, so the rendered pixels tell what the labels must be, through flip, scale, crop and reduced decoding."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for centre, radius in [((40, 35), 24), ((110, 60), 34), ((30, 95), 15)]:
        cv2.circle(mask, centre, radius, 1, -1)
    record = record_of(mask.astype(bool)[None], np.repeat(mask[..., None] * np.uint8(255), 3, -1), form)
    view = ViewConfig(size=64, scale=scale, colour_jitter=False)
    sample = make_mask_sample(record, view, MaskSampleConfig(min_area_ratio=0, max_area_ratio=1), seed)
    labels = sample.masks.sample(sample.view.cell_centres(64, 64)).reshape(64, 64).numpy()
    drawn = sample.image[1] > 128
    padding = np.ones((64, 64), bool)
    padding[: int(sample.view.valid_xyxy[3]), : int(sample.view.valid_xyxy[2])] = False
    assert not labels[padding].any()
    borders = cv2.morphologyEx(labels.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    wrong = labels[~padding] != drawn[~padding]
    assert not wrong[borders[~padding] == 0].any()
    # At borders only the rounding of a pixel is left; a map half a pixel off would turn every border pixel on one side.
    assert wrong.sum() <= 0.25 * borders[~padding].sum()


def test_a_random_subset_of_too_many_masks_in_their_order() -> None:
    masks = np.zeros((20, HEIGHT, WIDTH), bool)
    for index in range(20):
        masks[index, 40:80, 4 * index : 4 * index + 60] = True
    config, fitted = MaskSampleConfig(max_masks=6), ViewConfig(size=64, scale=(1.0, 1.0), colour_jitter=False)
    chosen = []
    for seed in range(60):
        dense = make_mask_sample(record_of(masks), fitted, config, seed).masks.to_dense().numpy()
        chosen.append([int(mask[50].argmax()) // 4 for mask in dense])
    assert all(len(set(subset)) == 6 and subset == sorted(subset) for subset in chosen)
    assert np.bincount(np.ravel(chosen), minlength=20).min() >= 5  # of 18 expected


def test_a_view_without_masks_is_a_sample_without_masks() -> None:
    tiny = np.zeros((2, HEIGHT, WIDTH), bool)
    tiny[0, 5, 5] = True  # the other one is empty
    for masks in (tiny, tiny[:0]):
        sample = make_mask_sample(record_of(masks), VIEW, MaskSampleConfig(min_area_ratio=0.01), 0)
        assert len(sample.masks) == 0 and sample.boxes_xyxy.shape == (0, 4) and sample.image.shape == (3, 64, 64)


def test_an_empty_mask_is_never_kept() -> None:
    sample = make_mask_sample(record_of(np.zeros((1, HEIGHT, WIDTH), bool)), VIEW, MaskSampleConfig(min_area_ratio=0), 0)
    assert len(sample.masks) == 0


def test_an_image_of_another_size_is_refused() -> None:
    record = record_of(blobs(3, 0), np.zeros((HEIGHT, WIDTH + 8, 3), np.uint8))
    with pytest.raises(DataError, match="not of the size of its masks"):
        make_mask_sample(record, VIEW, MaskSampleConfig(), 0)


def test_the_seed_alone_decides() -> None:
    record, config = record_of(blobs(60, 1), np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)), MaskSampleConfig(max_masks=5)
    jitter = VIEW.model_copy(update={"colour_jitter": True})
    first, again, other = (make_mask_sample(record, jitter, config, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image) and first.view == again.view and first.masks == again.masks
    assert torch.equal(first.boxes_xyxy, again.boxes_xyxy)
    assert first.view != other.view and not np.array_equal(first.image, other.image)


def test_jitter_changes_colours_alone() -> None:
    record = record_of(blobs(20, 2), np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    plain = make_mask_sample(record, VIEW, MaskSampleConfig(), 5)
    jittered = make_mask_sample(record, VIEW.model_copy(update={"colour_jitter": True}), MaskSampleConfig(), 5)
    assert plain.view == jittered.view and plain.masks == jittered.masks
    assert not np.array_equal(plain.image, jittered.image)


def test_sample_seeds_are_the_same_on_every_machine() -> None:
    assert sample_seed(42, 0, "sa_1") == GOLDEN
    seeds = {sample_seed(seed, epoch, key) for seed in (1, 11) for epoch in (1, 11, 111) for key in ("sa_1", "1", "11/sa_1")}
    assert len(seeds) == 18 and all(0 <= seed < 2**63 for seed in seeds)


GOLDEN = 4078032877033783642
"""What ``printf 42/0/sa_1 | b2sum -l 64`` prints, read as a little-endian number and halved."""


def test_boxes_in_a_flipped_view() -> None:
    view = View(scale_xy=(-2.0, 2.0), offset_xy=(100.0, 10.0), size=(32, 32), valid_xyxy=(0.0, 0.0, 32.0, 20.0))
    boxes = boxes_in_view(torch.tensor([[60, 20, 80, 30], [90, 0, 120, 99]]), view)
    assert boxes.tolist() == [[10.0, 5.0, 20.0, 10.0], [0.0, 0.0, 5.0, 20.0]]


def test_collate_stacks_images_and_keeps_the_rest_ragged() -> None:
    samples: list[MaskSample] = [make_mask_sample(record_of(blobs(count, count)), VIEW, MaskSampleConfig(), count) for count in (3, 9)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert (batch.keys, batch.seeds) == (("sa_1", "sa_1"), (3, 9))
    for index, sample in enumerate(samples):
        assert np.array_equal(batch.images[index].numpy(), sample.image)
        assert batch.views[index] is sample.view and batch.masks[index] is sample.masks and batch.boxes_xyxy[index] is sample.boxes_xyxy
