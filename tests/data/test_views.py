"""Views: the map and the pixels agree, checked against bilinear interpolation written out."""

from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uniovseg.data.views import PAD, ViewConfig, colour_jitter, draw_view, fit_view, render, source_window, warp
from uniovseg.records import View

JITTERED = (0.1, 2.0)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(0, 255, (max(2, height // 6), max(2, width // 6), 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse, 0, 255).astype(np.uint8)


def source_of_pixels(view: View) -> NDArray[np.float64]:
    """[h, w, 2] source (x, y) of the centres of the view's pixels."""
    return view.cell_centres(*view.size).double().reshape(*view.size, 2).numpy()


def shown(view: View) -> NDArray[np.bool_]:
    """[h, w]: pixels of the view whose centre shows image."""
    x1, y1 = view.valid_xyxy[2:]
    return (np.arange(view.size[0])[:, None] + 0.5 < y1) & (np.arange(view.size[1])[None] + 0.5 < x1)


def bilinear(image: NDArray[np.uint8], points_xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The image at points, pixel i having its centre at i + 0.5, its border repeated outwards."""
    height, width = image.shape[:2]
    x, y = np.clip(points_xy[..., 0] - 0.5, 0, width - 1), np.clip(points_xy[..., 1] - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    pixels = image.astype(float)
    upper, lower = pixels[y0, x0] * (1 - fx) + pixels[y0, x1] * fx, pixels[y1, x0] * (1 - fx) + pixels[y1, x1] * fx
    return cast(NDArray[np.float64], upper * (1 - fy) + lower * fy)


views = st.builds(
    lambda height, width, scale, seed: (height, width, draw_view(ViewConfig(size=64, scale=scale), height, width, np.random.default_rng(seed))),
    st.integers(20, 130),
    st.integers(20, 130),
    st.sampled_from([(0.8, 1.2), JITTERED]),
    st.integers(0, 10_000),
)


@settings(max_examples=150, deadline=None)
@given(views)
def test_a_drawn_view_keeps_to_the_image(drawn: tuple[int, int, View]) -> None:
    height, width, view = drawn
    x0, y0, x1, y1 = source_window(view)
    assert -1e-9 <= x0 < x1 <= width + 1e-9 and -1e-9 <= y0 < y1 <= height + 1e-9
    assert view.valid_xyxy[:2] == (0, 0) and view.valid_xyxy[2] <= 64 and view.valid_xyxy[3] <= 64
    if view.valid_xyxy[2] < 64:  # padding only where the whole image is in
        assert (x0, x1) == pytest.approx((0, width))
    if view.valid_xyxy[3] < 64:
        assert (y0, y1) == pytest.approx((0, height))
    # Each axis is scaled to a whole number of pixels, half a pixel from one common scale at most.
    side = 64 * np.array(JITTERED)
    longer = max(width / abs(view.scale_xy[0]), height / view.scale_xy[1])
    assert side[0] - 0.5 <= longer <= side[1] + 0.5
    assert abs(width / abs(view.scale_xy[0]) - longer * width / max(width, height)) <= 1.01


def test_scale_flip_and_crop_are_drawn_evenly() -> None:
    config, rng = ViewConfig(size=64, scale=(0.5, 1.5), hflip=0.25), np.random.default_rng(0)
    drawn = [draw_view(config, 80, 60, rng) for _ in range(2000)]
    assert np.mean([view.scale_xy[0] < 0 for view in drawn]) == pytest.approx(0.25, abs=0.04)
    sides = np.array([80 / view.scale_xy[1] for view in drawn])
    assert np.histogram(sides, bins=4, range=(32, 96))[0] == pytest.approx(500, abs=90)
    crops = [view.offset_xy[1] / view.scale_xy[1] / (side - 64) for view, side in zip(drawn, sides, strict=True) if side > 84]
    assert np.histogram(crops, bins=3, range=(0, 1.0001))[0] == pytest.approx(len(crops) / 3, abs=0.2 * len(crops))


@settings(max_examples=80, deadline=None)
@given(views)
def test_render_is_bilinear_interpolation_at_the_centres(drawn: tuple[int, int, View]) -> None:
    height, width, view = drawn
    assume(max(abs(view.scale_xy[0]), view.scale_xy[1]) <= 2)  # else averaged first: see below
    image = picture(height, width)
    found, inside = render(image, view), shown(view)
    assert found.shape == (3, 64, 64) and found.dtype == np.uint8
    assert np.abs(found.transpose(1, 2, 0) - bilinear(image, source_of_pixels(view)))[inside].max() <= 1.01
    assert bool((found[:, ~inside] == PAD).all())


@pytest.mark.parametrize(("height", "width"), [(50, 77), (77, 50), (64, 64), (40, 41)])
def test_the_view_of_inference_is_bilinear_interpolation_too(height: int, width: int) -> None:
    image, view = picture(height, width), fit_view(64, height, width)
    found, inside = render(image, view).transpose(1, 2, 0), shown(view)
    assert view.scale_xy[0] == view.scale_xy[1] and max(view.valid_xyxy) == 64
    assert source_window(view) == pytest.approx((0, 0, width, height))
    assert np.abs(found - bilinear(image, source_of_pixels(view)))[inside].max() <= 6  # OpenCV's warp rounds coordinates to 1/32 pixel
    assert np.abs(found - bilinear(image, source_of_pixels(view)))[inside].mean() <= 0.6
    assert bool((found[~inside] == PAD).all())


@pytest.mark.parametrize("scale", [(0.1, 0.1), (0.23, 0.23), (0.45, 0.45)])
@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_strongly_reduced_view_stays_in_place_and_averages(scale: tuple[float, float], shrink: int, seed: int) -> None:
    """A ramp survives averaging: its value in the view still tells the source coordinate."""
    height, width = 200, 240
    ramp = np.stack(np.broadcast_arrays(np.arange(width)[None] + 0.5, np.arange(height)[:, None] + 0.5, 128.0), -1)
    decoded = ramp.reshape(height // shrink, shrink, width // shrink, shrink, 3).mean((1, 3))
    view = draw_view(ViewConfig(size=64, scale=scale), height, width, np.random.default_rng(seed))
    found = render(np.round(decoded).astype(np.uint8), view, shrink)[:2].transpose(1, 2, 0)
    assert np.abs(found - source_of_pixels(view))[shown(view)].max() <= 1.6  # levels are source pixels; a view pixel is 8 to 37 of them
    checks = np.indices((height, width)).sum(0)[..., None].repeat(3, -1) % 2 * np.uint8(254)
    averaged = render(checks.astype(np.uint8), view)[:, shown(view)]
    assert np.abs(averaged.astype(int) - 127).max() <= 2  # no pixel is skipped


@settings(max_examples=60, deadline=None)
@given(views)
def test_resize_crop_and_flip_equal_the_warp(drawn: tuple[int, int, View]) -> None:
    height, width, view = drawn
    assume(max(abs(view.scale_xy[0]), view.scale_xy[1]) <= 2)
    image = picture(height, width)
    found = render(image, view).transpose(1, 2, 0)[shown(view)].reshape(-1)
    warped = warp(image, view, (height, width)).reshape(-1)
    assert np.abs(found.astype(int) - warped).max() <= 6


@settings(max_examples=40, deadline=None)
@given(views)
def test_a_flipped_view_shows_the_mirrored_image(drawn: tuple[int, int, View]) -> None:
    height, width, view = drawn
    image = picture(height, width)
    mirrored = View(
        scale_xy=(-view.scale_xy[0], view.scale_xy[1]),
        offset_xy=(width - view.offset_xy[0], view.offset_xy[1]),
        size=view.size,
        valid_xyxy=view.valid_xyxy,
    )
    assert np.abs(render(image, mirrored).astype(int) - render(np.ascontiguousarray(image[:, ::-1]), view)).max() <= 1


@given(views)
def test_the_map_and_its_inverse(drawn: tuple[int, int, View]) -> None:
    view = drawn[2]
    points = torch.tensor([[0.0, 0.0], [3.5, 60.25], list(view.valid_xyxy[2:])], dtype=torch.float64)
    assert torch.allclose(view.to_view(view.to_source(points)), points)


class Scripted:
    """A random generator that gives what it is told."""

    def __init__(self, coins: Sequence[bool], values: Sequence[float]) -> None:
        self.coins, self.values = iter(coins), iter(values)

    def random(self) -> float:
        return 0.0 if next(self.coins) else 0.9

    def uniform(self, low: float, high: float) -> float:
        value = next(self.values)
        assert low <= value <= high
        return value

    def integers(self, low: int, high: int) -> int:
        return int(self.uniform(low, high))


def jittered(image: NDArray[np.uint8], coins: str, *values: float) -> NDArray[np.int64]:
    """The image under the steps of `coins`: l contrast last, b brightness, c contrast, s saturation, h hue."""
    scripted = Scripted([letter in coins for letter in "lbcsh"], values)
    return colour_jitter(image, cast(Any, scripted)).astype(np.int64)


IMAGE = np.ascontiguousarray(picture(24, 30, seed=3).transpose(2, 0, 1))


def test_without_any_step_the_image_stays() -> None:
    assert np.array_equal(jittered(IMAGE, ""), IMAGE)
    assert np.array_equal(jittered(IMAGE, "l"), IMAGE)


def test_brightness_and_contrast() -> None:
    wide = IMAGE.astype(float)
    assert np.array_equal(jittered(IMAGE, "b", 20), np.clip(wide + 20, 0, 255).astype(int))
    assert np.array_equal(jittered(IMAGE, "b", -30.5), np.clip(wide - 30.5, 0, 255).astype(int))
    for order in ("c", "lc"):
        assert np.array_equal(jittered(IMAGE, order, 1.3), np.clip(wide * 1.3, 0, 255).astype(int))
    assert np.array_equal(jittered(IMAGE, "bc", 31, 0.5), (np.clip(wide + 31, 0, 255).astype(int) * 0.5).astype(int))


def test_saturation_scales_the_distance_to_the_largest_channel() -> None:
    """In HSV with value and hue kept, a channel is ``V - S (V - c) / S0``."""
    wide = IMAGE.astype(float)
    largest = wide.max(0)
    for factor in (0.5, 1.5):
        expected = np.maximum(largest - factor * (largest - wide), 0)
        clear = (largest - wide.min(0)) * factor < largest - 1  # saturation stays below 1
        assert np.abs(jittered(IMAGE, "s", factor) - expected)[:, clear].max() <= 4


def test_hue_turns_by_two_degrees_a_step() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [200, 100, 0]]], np.uint8).transpose(2, 0, 1)
    turned = jittered(np.ascontiguousarray(colours), "h", 15).transpose(1, 2, 0)[0]  # 30 degrees: half of the way from red to yellow
    assert np.abs(turned - [[255, 128, 0], [0, 255, 128], [200, 200, 0]]).max() <= 3
    back = jittered(np.ascontiguousarray(colours), "h", -15).transpose(1, 2, 0)[0]
    assert np.abs(back - [[255, 0, 128], [128, 255, 0], [200, 0, 0]]).max() <= 3


def test_contrast_is_first_or_last() -> None:
    """Contrast that comes first saturates colours before saturation spreads them."""
    image = np.repeat(np.array([200, 250, 250], np.uint8), 16).reshape(3, 4, 4)
    assert jittered(image, "cs", 1.2, 1.5)[:, 0, 0] == pytest.approx([255 - 1.5 * 15, 255, 255], abs=3)
    assert jittered(image, "lcs", 1.2, 1.5)[:, 0, 0] == pytest.approx([(250 - 1.5 * 50) * 1.2, 255, 255], abs=3)


def test_each_step_is_taken_half_the_time() -> None:
    grey = np.full((3, 4, 4), 100, np.uint8)  # saturation and hue leave grey alone
    same = [np.array_equal(colour_jitter(grey, np.random.default_rng(seed)), grey) for seed in range(800)]
    assert np.mean(same) == pytest.approx(0.25, abs=0.06)
    assert np.array_equal(colour_jitter(IMAGE, np.random.default_rng(4)), colour_jitter(IMAGE, np.random.default_rng(4)))
