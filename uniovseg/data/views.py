"""Views: an augmentation is one affine map from view pixels to source pixels, drawn from numbers alone.

`draw_view` never sees the image, so the map is known before anything is decoded. `render` applies it to the image once; masks are looked up through
it and are never warped (decision 3 of the design).

The map and the pixels must agree, or every label at a mask's border is off. An image resized from w to the whole number w' of pixels shows source
coordinate ``x * w / w'`` at view coordinate x, edges on edges, so a drawn view takes ``w / w'`` as its scale (each axis has its own) and starts at a
whole pixel of the resized image: it is then exactly a resize, a crop and a flip, which OpenCV does several times faster than a warp. The view of
inference keeps one scale for both axes, its shorter side seldom ends on a whole pixel, and it is warped.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from uniovseg.config import Config
from uniovseg.records import View

PAD = 128
"""Value of padding, before normalisation."""


CanvasSide = Annotated[int, Field(ge=32, multiple_of=32)]
"""Side of a square canvas in pixels: whole cells of the CLIP's last map."""


class ViewConfig(Config):
    """How a training view is drawn (method: 2.3): flip, scale, crop and pad, then colour jitter."""

    size: int = Field(1024, ge=32, multiple_of=32, description="side of the square view, pixels")
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    scale: tuple[float, float] = Field((0.8, 1.2), description="range of the longer side, fractions of the view (0.1, 2.0: large-scale jitter)")
    colour_jitter: bool = Field(True, description="SSD colour jitter: brightness, contrast, saturation, hue")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two numbers above 0, the smaller one first, not {list(self.scale)}")
        return self


def draw_view(config: ViewConfig, height: int, width: int, rng: np.random.Generator) -> View:
    """A random view of an image of (height, width) pixels: its longer side becomes ``size * scale``, then a random crop, or padding right and below."""
    flipped = rng.random() < config.hflip
    zoom = config.size * rng.uniform(*config.scale) / max(height, width)  # view pixels a source pixel
    sides = [max(1, round(width * zoom)), max(1, round(height * zoom))]
    x, y = (int(rng.integers(max(0, side - config.size) + 1)) for side in sides)
    x_scale, y_scale = width / sides[0], height / sides[1]
    return View(
        scale_xy=(-x_scale if flipped else x_scale, y_scale),
        offset_xy=(width - x * x_scale if flipped else x * x_scale, y * y_scale),
        size=(config.size, config.size),
        valid_xyxy=(0.0, 0.0, float(min(sides[0], config.size)), float(min(sides[1], config.size))),
    )


def random_view(config: ViewConfig, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[View, NDArray[np.uint8]]:
    """A random view of an RGB image [H, W, 3] and what it shows, [3, size, size], with colour jitter where it is asked for."""
    view = draw_view(config, image.shape[0], image.shape[1], rng)
    shown = render(image, view)
    return view, colour_jitter(shown, rng) if config.colour_jitter else shown


def stack_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """What views of one size show, [3, H, W] each, as [B, 3, H, W]."""
    return torch.from_numpy(np.stack(images))


def fit_view(size: int, height: int, width: int) -> View:
    """The view of inference: the whole image, its longer side scaled to `size`, padded right and below."""
    scale = max(height, width) / size
    return View(scale_xy=(scale, scale), offset_xy=(0.0, 0.0), size=(size, size), valid_xyxy=(0.0, 0.0, width / scale, height / scale))


def source_window(view: View) -> tuple[float, float, float, float]:
    """The part of the source image that a view shows: (x0, y0, x1, y1) in source pixels."""
    x0, y0, x1, y1 = view.valid_xyxy
    xs = sorted((x0 * view.scale_xy[0] + view.offset_xy[0], x1 * view.scale_xy[0] + view.offset_xy[0]))
    ys = (y0 * view.scale_xy[1] + view.offset_xy[1], y1 * view.scale_xy[1] + view.offset_xy[1])
    return xs[0], ys[0], xs[1], ys[1]


def render(image: NDArray[np.uint8], view: View, shrink: int = 1) -> NDArray[np.uint8]:
    """Draw a view of an image, pixel centres on pixel centres.

    An image that shrinks by more than two is first halved by area averaging, as often as that holds, so that bilinear sampling skips no pixel.

    Args:
        image: [H, W, 3] uint8 RGB.
        view: the map between the view and the source.
        shrink: source pixels that a pixel of `image` covers a side, where it was decoded at a reduced size.

    Returns:
        [3, h, w] uint8; padding is 128.
    """
    height, width = image.shape[0] * shrink, image.shape[1] * shrink
    while min(abs(view.scale_xy[0]) * image.shape[1] / width, view.scale_xy[1] * image.shape[0] / height) > 2:
        halved = (max(1, image.shape[1] // 2), max(1, image.shape[0] // 2))
        image = cv2.resize(image, halved, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    shown = _resized(image, view, (height, width))
    if shown is None:
        shown = warp(image, view, (height, width))
    h, w = shown.shape[:2]
    assert h <= view.size[0] and w <= view.size[1], (shown.shape, view)  # OpenCV would write elsewhere
    canvas = np.empty((3, *view.size), np.uint8)
    canvas[:, h:] = PAD
    canvas[:, :h, w:] = PAD
    cv2.split(shown, [plane[:h, :w] for plane in canvas])  # written where it belongs
    return canvas


def _resized(image: NDArray[np.uint8], view: View, source: tuple[int, int]) -> NDArray[np.uint8] | None:
    """What `warp` gives, by a resize, a crop and a flip; None for a view that does not lie on whole pixels of a resized image."""
    (x_scale, y_scale), (x_offset, y_offset) = view.scale_xy, view.offset_xy
    flipped, start = x_scale < 0, x_offset / abs(x_scale)
    left = start - view.valid_xyxy[2] if flipped else start  # a flipped view begins at the right end of what it shows
    exact = np.array([source[1] / abs(x_scale), source[0] / y_scale, left, y_offset / y_scale, *view.valid_xyxy[2:]])
    whole = np.rint(exact)
    if np.abs(exact - whole).max() > 1e-6:
        return None
    w, h, x, y, shown_w, shown_h = (int(value) for value in whole)
    resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)[y : y + shown_h, x : x + shown_w]
    return cv2.flip(resized, 1) if flipped else resized  # type: ignore[return-value]


def warp(image: NDArray[np.uint8], view: View, source: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear samples [h, w, 3] of an image at the pixel centres of what a view shows; `source` is the (h, w) that the view's map speaks of."""
    (x_scale, y_scale), (x_offset, y_offset) = view.scale_xy, view.offset_xy
    x_ratio, y_ratio = image.shape[1] / source[1], image.shape[0] / source[0]
    # OpenCV counts from pixel centres: its coordinate is ours minus a half.
    matrix = np.array(
        [
            [x_scale * x_ratio, 0, (x_offset + 0.5 * x_scale) * x_ratio - 0.5],
            [0, y_scale * y_ratio, (y_offset + 0.5 * y_scale) * y_ratio - 0.5],
        ]
    )
    shown = (min(view.size[1], max(1, round(view.valid_xyxy[2]))), min(view.size[0], max(1, round(view.valid_xyxy[3]))))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, shown, flags=flags, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[return-value]


def colour_jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """SSD colour jitter of a [3, H, W] RGB image, each step half the time, as detectron2's ColorAugSSDTransform orders them.

    Brightness up to 32 levels up or down; contrast by 0.5 to 1.5, before or after the rest; saturation by 0.5 to 1.5; hue by up to 18 of OpenCV's 180
    steps, which are 2 degrees each. Every step saturates at 0 and 255.
    """
    contrast_last = rng.random() < 0.5
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 19)) if rng.random() < 0.5 else 0
    levels = np.arange(256)
    first = _table(levels + brightness)
    if not contrast_last:
        first = _table(first * contrast)
    image = _look_up(image, first)
    if saturation != 1.0 or hue:
        hsv = cv2.cvtColor(cv2.merge(list(image)), cv2.COLOR_RGB2HSV)
        tables = np.stack([((levels + hue) % 180).astype(np.uint8), _table(levels * saturation), _table(levels)], axis=-1)
        image = np.stack(cv2.split(cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB)))
    return _look_up(image, _table(levels * contrast)) if contrast_last else image


def _table(values: NDArray[np.floating | np.integer]) -> NDArray[np.uint8]:
    table: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return table


def _look_up(image: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`table` applied to every value of a [3, H, W] image."""
    return cv2.LUT(image.reshape(-1, image.shape[-1]), table).reshape(image.shape).astype(np.uint8, copy=False)
