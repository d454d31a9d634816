"""Views: an augmentation is one affine map from view pixels to source pixels, drawn from numbers alone.

`draw_view` never sees the image, so the map is known before anything is decoded. `render` applies it to the image once; masks are looked up through
it and are never warped (decision 3 of the design).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uniovseg.config import Config
from uniovseg.records import View

PAD = 128
"""Value of padding, before normalisation."""


class ViewConfig(Config):
    """How a training view is drawn (method: 2.3): flip, scale, crop and pad, then colour jitter."""

    size: int = Field(1024, ge=32, multiple_of=32, description="side of the square view, pixels")
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    scale: tuple[float, float] = Field((0.8, 1.2), description="range of the longer side, fractions of the view (0.1, 2.0: large-scale jitter)")
    colour_jitter: bool = Field(True, description="SSD colour jitter: brightness, contrast, saturation, hue")


def draw_view(config: ViewConfig, height: int, width: int, rng: np.random.Generator) -> View:
    """A random view of an image of (height, width) pixels: its longer side becomes ``size * scale``, then a random crop, or padding right and below."""
    flipped = rng.random() < config.hflip
    zoom = config.size * rng.uniform(*config.scale) / max(height, width)  # view pixels a source pixel
    scaled = (width * zoom, height * zoom)
    offset = [rng.uniform(0, max(0.0, side - config.size)) for side in scaled]
    shown = [min(side - start, config.size) for side, start in zip(scaled, offset, strict=True)]
    scale = 1 / zoom
    x_scale, x_offset = (scale, offset[0] * scale) if not flipped else (-scale, width - offset[0] * scale)
    return View(
        scale_xy=(x_scale, scale),
        offset_xy=(x_offset, offset[1] * scale),
        size=(config.size, config.size),
        valid_xyxy=(0.0, 0.0, shown[0], shown[1]),
    )


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


def render(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Draw a view of an RGB image [H, W, 3]: [3, size, size] uint8, padding 128. One bilinear warp of the shown part, with pixel centres on pixel centres.

    An image that shrinks by more than two is first halved by area averaging, as often as that holds, so that bilinear sampling skips no pixel.
    """
    (x_scale, y_scale), (x_offset, y_offset) = view.scale_xy, view.offset_xy
    while min(abs(x_scale), y_scale) > 2:
        height, width = image.shape[:2]
        halved = (max(1, width // 2), max(1, height // 2))
        image = cv2.resize(image, halved, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        x_ratio, y_ratio = halved[0] / width, halved[1] / height
        x_scale, x_offset, y_scale, y_offset = x_scale * x_ratio, x_offset * x_ratio, y_scale * y_ratio, y_offset * y_ratio
    # OpenCV counts from pixel centres: its coordinate is ours minus a half.
    matrix = np.array([[x_scale, 0, x_offset + 0.5 * x_scale - 0.5], [0, y_scale, y_offset + 0.5 * y_scale - 0.5]])
    height, width = view.size
    shown_w, shown_h = min(width, round(view.valid_xyxy[2])), min(height, round(view.valid_xyxy[3]))
    canvas = np.full((height, width, 3), PAD, np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    canvas[:shown_h, :shown_w] = cv2.warpAffine(image, matrix, (shown_w, shown_h), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1))


def colour_jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """SSD colour jitter of [3, H, W] RGB: brightness +-32, contrast 0.5-1.5 (before or after the rest), saturation 0.5-1.5, hue +-18 degrees, each half the time."""
    table = np.arange(256, dtype=np.float32)
    late_contrast = rng.random() < 0.5
    if rng.random() < 0.5:
        table = table + rng.uniform(-32, 32)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0
    if not late_contrast:
        table = np.clip(table, 0, 255) * contrast
    pixels = cv2.LUT(np.ascontiguousarray(image.transpose(1, 2, 0)), np.clip(table, 0, 255).astype(np.uint8))
    if saturation != 1.0 or hue != 0.0:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)  # hue in [0, 180): half degrees
        hues = ((np.arange(256) + round(hue / 2)) % 180).astype(np.uint8)
        saturations = np.clip(np.arange(256) * saturation, 0, 255).astype(np.uint8)
        tables = np.stack([hues, saturations, np.arange(256, dtype=np.uint8)], axis=-1)[None]
        pixels = cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB)
    if late_contrast and contrast != 1.0:
        pixels = cv2.LUT(pixels, np.clip(np.arange(256) * contrast, 0, 255).astype(np.uint8))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.uint8, copy=False)
