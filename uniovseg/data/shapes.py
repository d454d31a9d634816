"""The shapes world: a small synthetic SA-1B with text, on which the whole method really learns.

A scene is a textured ground (sometimes two, meeting at a horizon) with four to eight patterned, coloured shapes on it, of any rotation, some of
them in touching groups, later ones hiding earlier ones, many with a shaded part. Captions name a thing by pattern, colour and shape, for example
``striped red star``: 4 x 8 x 8 = 256 names. The evaluation set tells 32 kinds of things apart, by pattern and colour, each with eight names as its
synonyms (``striped red shape``: circle, triangle, ...), and the grounds as stuff. One kind in eight is *held out*: no stage-2 caption names it, and
the scenes that captions are written for do not contain it; the evaluation set does.

Why shape is no part of a kind: a CLIP that two CPU cores train in half an hour hardly holds it. A linear probe of its embeddings of single shapes reads
75 % of patterns (25 % by chance) and 28 % of shapes (12 % by chance), where colours are named right without any probe (98 %). Shapes are what masks are
learned from.

The same scenes give three sets, from different random streams, so that text and masks are unpaired:
image-mask pairs without labels (objects, parts, groups, grounds), image-text pairs, and labelled panoptic scenes for evaluation.
The shapes fill their boxes badly (rings, stars, bars, ...), so a model cannot win by answering with the box.
"""

import functools
import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import Field, model_validator

from uniovseg.config import Config
from uniovseg.records import Category, ImageMasks, ImageText

Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]

PATTERNS = ("plain", "striped", "dotted", "checkered")
COLOURS = {
    "red": (212, 40, 36),
    "orange": (240, 138, 30),
    "yellow": (246, 222, 44),
    "green": (44, 168, 60),
    "cyan": (52, 208, 214),
    "blue": (44, 76, 214),
    "purple": (136, 48, 178),
    "pink": (246, 138, 190),
}
SHAPES = ("circle", "triangle", "star", "cross", "ring", "crescent", "bar", "arrow")
GROUNDS = {
    "sand": (206, 186, 144),
    "grass": (112, 138, 84),
    "water": (112, 142, 166),
    "snow": (228, 232, 236),
    "mud": (110, 86, 68),
    "stone": (140, 140, 138),
}
THING_CLASSES: tuple[tuple[str, str, str], ...] = tuple((p, c, s) for p in PATTERNS for c in COLOURS for s in SHAPES)
CLASS_NAMES: tuple[str, ...] = (*(" ".join(words) for words in THING_CLASSES), *GROUNDS)
"""What captions say: names of 256 things, then of 6 grounds; the index is the class index."""


def category_of(class_index: int) -> int:
    """The id of the evaluation set's category that a class belongs to: its pattern and colour, or its ground."""
    things = len(THING_CLASSES)
    return class_index // len(SHAPES) if class_index < things else class_index - things + things // len(SHAPES)


def _categories() -> tuple[Category, ...]:
    synonyms: dict[int, list[str]] = {}
    for index, name in enumerate(CLASS_NAMES):
        synonyms.setdefault(category_of(index), []).append(name)
    kinds = [f"{pattern} {colour} shape" for pattern in PATTERNS for colour in COLOURS]
    return tuple(Category(id, name, tuple(synonyms[id]), id < len(kinds)) for id, name in enumerate([*kinds, *GROUNDS]))


CATEGORIES: tuple[Category, ...] = _categories()
"""The evaluation set's categories: 32 kinds of things, whose synonyms are the names that captions have for them, then 6 grounds."""
HELD_OUT: frozenset[int] = frozenset(i for i in range(len(THING_CLASSES)) if category_of(i) in (1, 11, 21, 31))
"""Class indices that no stage-2 caption names: those of one kind in eight, with every pattern and every colour among the rest."""
UNSEEN: frozenset[str] = frozenset(CATEGORIES[category_of(index)].name for index in HELD_OUT)
"""Names of the categories that no stage-2 caption names by any synonym."""


class SceneConfig(Config):
    """What a scene of the shapes world looks like."""

    size: int = Field(128, ge=64, le=2048, description="side of the square image, pixels")
    min_objects: int = Field(4, ge=1, le=16, description="fewest shapes in a scene")
    max_objects: int = Field(8, ge=1, le=16, description="most shapes in a scene")
    min_extent: float = Field(0.06, gt=0, lt=1, description="smallest shape, diameter as a fraction of the side (log-uniform)")
    max_extent: float = Field(0.35, gt=0, lt=1, description="largest shape, diameter as a fraction of the side (log-uniform)")
    group_share: float = Field(0.5, ge=0, le=1, description="share of shapes that are put beside the one before, as a group")
    part_share: float = Field(0.45, ge=0, le=1, description="share of shapes that have a shaded part")
    jpeg_quality: int = Field(90, ge=30, le=100, description="JPEG quality of the written images")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for what in ("objects", "extent"):
            if getattr(self, f"min_{what}") > getattr(self, f"max_{what}"):
                raise ValueError(f"min_{what} must not exceed max_{what}")
        return self


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape as it can be seen.

    Attributes:
        class_index: index into `CLASS_NAMES`.
        mask: [S, S] bool, the visible pixels.
        part: [S, S] bool, the visible pixels of its shaded part; None without one.
        group: number of the group that it belongs to; shapes that stand alone have a number of their own.
    """

    class_index: int
    mask: Mask
    part: Mask | None
    group: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn scene: ``image`` [S, S, 3] uint8 RGB, its visible objects, and its grounds as (class index, mask) pairs. Objects and grounds tile the image."""

    image: Image
    objects: tuple[SceneObject, ...]
    grounds: tuple[tuple[int, Mask], ...]


@functools.cache
def _outline(shape: str) -> tuple[NDArray[np.float64], ...]:
    """Closed contours of a shape inside the unit circle, (x, y); a second contour is a hole."""

    def polar(angles: NDArray[np.float64], radii: NDArray[np.float64] | float) -> NDArray[np.float64]:
        contour: NDArray[np.float64] = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radii, (-1, 1))
        return contour

    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    match shape:
        case "circle":
            return (polar(turn, 1.0),)
        case "triangle":
            return (polar(np.array([0.5, 7 / 6, 11 / 6]) * np.pi, 1.0),)
        case "star":
            return (polar(np.linspace(0, 2 * np.pi, 10, endpoint=False), np.tile([1.0, 0.42], 5)),)
        case "cross":
            a, b = 0.27, 0.95
            return (np.array([(a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a), (-a, -b), (a, -b), (a, -a), (b, -a), (b, a)]),)
        case "ring":
            return (polar(turn, 1.0), polar(turn, 0.58))
        case "crescent":
            outer = polar(np.linspace(0.3 * np.pi, 1.7 * np.pi, 30), 1.0)
            tip = outer[0]
            centre, radius = 0.55, math.hypot(tip[0] - 0.55, tip[1])
            start = math.atan2(tip[1], tip[0] - centre)
            inner = polar(np.linspace(start, 2 * np.pi - start, 24), radius) + np.array([centre, 0.0])
            return (np.concatenate([outer, inner[::-1]]),)
        case "bar":
            return (np.array([(1, 0.2), (-1, 0.2), (-1, -0.2), (1, -0.2)]),)
        case "arrow":
            return (np.array([(1, 0), (0.1, 0.75), (0.1, 0.26), (-0.95, 0.26), (-0.95, -0.26), (0.1, -0.26), (0.1, -0.75)]),)
    raise AssertionError(shape)


@functools.lru_cache(maxsize=4)
def _pixel_centres(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    grid = np.arange(size, dtype=np.float32) + 0.5
    xs, ys = np.meshgrid(grid, grid)
    return xs, ys


def _ground_texture(name: str, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[S, S, 3] float32 texture: the ground's colour times noise of several scales, with the ground's own grain direction."""
    coarse, fine = {"sand": (6, 64), "grass": (10, 48), "water": (4, 20), "snow": (4, 24), "mud": (8, 28), "stone": (14, 40)}[name]
    stretch = {"grass": (1, 4), "water": (5, 1)}.get(name, (1, 1))  # blades stand, waves lie
    field = np.zeros((size, size), np.float32)
    for cells, weight in ((coarse, 0.10), (fine, 0.09)):
        shape = (max(2, cells // stretch[1]), max(2, cells // stretch[0]))
        field += weight * cv2.resize(rng.standard_normal(shape, dtype=np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    field += 0.03 * rng.standard_normal((size, size), dtype=np.float32)
    tint = np.asarray(GROUNDS[name], np.float32) * rng.uniform(0.88, 1.1)
    return tint * (1 + field[..., None])


def _draw_grounds(config: SceneConfig, rng: np.random.Generator) -> tuple[NDArray[np.float32], list[tuple[int, Mask]]]:
    size = config.size
    names = [str(name) for name in rng.permutation(list(GROUNDS))[: 2 if rng.random() < 0.35 else 1]]
    canvas = _ground_texture(names[0], size, rng)
    first = np.ones((size, size), bool)
    if len(names) == 2:
        xs, ys = _pixel_centres(size)
        angle = rng.uniform(-0.5, 0.5)
        first = ys < size * rng.uniform(0.3, 0.7) + math.tan(angle) * (xs - size / 2)
        canvas = np.where(first[..., None], canvas, _ground_texture(names[1], size, rng))
    masks = [first, ~first][: len(names)]
    return canvas, [(len(THING_CLASSES) + list(GROUNDS).index(name), mask) for name, mask in zip(names, masks, strict=True)]


@dataclass(frozen=True, slots=True)
class _Placed:
    class_index: int
    centre: tuple[float, float]
    radius: float
    angle: float
    group: int


def _place(config: SceneConfig, rng: np.random.Generator, classes: NDArray[np.int64]) -> list[_Placed]:
    """Positions, sizes and groups. A group's member touches or overlaps the one before; a lone shape tries to keep clear of the others."""
    placed: list[_Placed] = []
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    for index in rng.choice(classes, count):
        extent = math.exp(rng.uniform(math.log(config.min_extent), math.log(config.max_extent)))
        radius = extent * config.size / 2
        group = len(placed)
        if placed and rng.random() < config.group_share:
            group, anchor = placed[-1].group, placed[-1]
            direction, gap = rng.uniform(0, 2 * math.pi), (anchor.radius + radius) * rng.uniform(0.7, 0.95)
            x, y = anchor.centre[0] + gap * math.cos(direction), anchor.centre[1] + gap * math.sin(direction)
            x, y = (float(np.clip(v, radius * 0.5, config.size - radius * 0.5)) for v in (x, y))
        else:
            for _ in range(6):
                x, y = (float(v) for v in rng.uniform(radius * 0.6, config.size - radius * 0.6, 2))
                if all(math.hypot(x - p.centre[0], y - p.centre[1]) > 0.9 * (radius + p.radius) for p in placed):
                    break
        placed.append(_Placed(int(index), (x, y), radius, rng.uniform(0, 2 * math.pi), group))
    return placed


DARK, WHITE = 0.3, 250.0
"""The tones of patterns beside the shape's own colour: that colour times `DARK`, and a white of `WHITE` in every channel."""


def _paint_pattern(name: str, u: NDArray[np.floating], v: NDArray[np.floating], paint: NDArray[np.float32]) -> None:
    """Draw a pattern over `paint` [H, W, 3]; ``u`` and ``v`` [H, W] count its periods.

    Stripes are dark, dots are white, and checks are both, so that patterns differ in their tones even where a shape is too small for their forms.
    """
    match name:
        case "striped":
            paint[u - np.floor(u) < 0.5] *= DARK
        case "dotted":
            paint[(u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.085] = WHITE
        case "checkered":
            column, row = (np.floor(axis * 1.6).astype(np.int32) % 2 == 0 for axis in (u, v))
            paint[column & row] *= DARK
            paint[~column & ~row] = WHITE


def _paint(canvas: NDArray[np.float32], item: _Placed, with_part: bool, rng: np.random.Generator) -> tuple[Mask, Mask | None]:
    """Paint one shape over the canvas; returns the pixels of the whole shape and of its shaded part, before anything hides them."""
    size = canvas.shape[0]
    pattern, colour, shape = THING_CLASSES[item.class_index]
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    rotation = np.array([[cos, sin], [-sin, cos]]) * item.radius
    contours = [np.round((outline @ rotation + item.centre) * 16 - 8).astype(np.int32) for outline in _outline(shape)]
    filled = np.zeros((size, size), np.uint8)
    cv2.fillPoly(filled, contours, 1, shift=4)
    mask: Mask = filled.view(bool)

    x0, y0, w, h = cv2.boundingRect(filled)
    window = np.s_[y0 : y0 + h, x0 : x0 + w]
    xs, ys = (grid[window] - centre for grid, centre in zip(_pixel_centres(size), item.centre, strict=True))
    along, across = xs * cos + ys * sin, ys * cos - xs * sin
    period = max(5.0, 0.55 * item.radius)
    tone = np.asarray(COLOURS[colour], np.float32) * rng.uniform(0.9, 1.06)
    paint = np.broadcast_to(tone, (h, w, 3)).copy()
    _paint_pattern(pattern, along / period, across / period, paint)
    part: Mask | None = None
    if with_part:
        part = np.zeros_like(mask)
        part[window] = mask[window] & (along > item.radius * rng.uniform(-0.1, 0.35))
        paint[part[window]] = paint[part[window]] * 0.45 + 128.0  # a pale wash: still the same colour and pattern
    canvas[window][mask[window]] = paint[mask[window]]
    return mask, part


def draw_scene(config: SceneConfig, rng: np.random.Generator, *, held_out: bool) -> Scene:
    """Draw one scene.

    Args:
        config: what scenes look like.
        rng: the scene's own random stream; equal streams give equal scenes.
        held_out: whether shapes of the held-out classes may occur.
    """
    classes = np.array([i for i in range(len(THING_CLASSES)) if held_out or i not in HELD_OUT])
    canvas, grounds = _draw_grounds(config, rng)
    placed = _place(config, rng, classes)
    owner = np.full((config.size, config.size), -1, np.int16)
    painted: list[tuple[Mask, Mask | None]] = []
    for number, item in enumerate(placed):
        painted.append(_paint(canvas, item, bool(rng.random() < config.part_share), rng))
        owner[painted[-1][0]] = number
    canvas += rng.normal(0, 3.0, canvas.shape).astype(np.float32)
    image = cv2.GaussianBlur(np.clip(canvas, 0, 255).astype(np.uint8), (3, 3), 0.6).astype(np.uint8, copy=False)

    objects = []
    for number, (item, (_, part)) in enumerate(zip(placed, painted, strict=True)):
        visible = owner == number
        if visible.any():
            objects.append(SceneObject(item.class_index, visible, None if part is None else part & visible, item.group))
    ground_masks = [(index, mask & (owner < 0)) for index, mask in grounds]
    return Scene(image, tuple(objects), tuple((index, mask) for index, mask in ground_masks if mask.any()))


MIN_MASK_AREA = 16
"""Masks of fewer pixels are not annotated."""


def annotated_masks(scene: Scene) -> list[Mask]:
    """The masks an annotator without names would give: objects, parts, groups of touching objects, grounds."""
    masks = [item.mask for item in scene.objects]
    masks += [item.part for item in scene.objects if item.part is not None and item.part.sum() < 0.8 * item.mask.sum()]
    for group in sorted({item.group for item in scene.objects}):
        members = [item.mask for item in scene.objects if item.group == group]
        if len(members) > 1:
            masks.append(np.logical_or.reduce(members))
    masks += [mask for _, mask in scene.grounds]
    return [mask for mask in masks if mask.sum() >= MIN_MASK_AREA]


def encode_image(image: Image, quality: int) -> bytes:
    """The RGB image as a JPEG file."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def scene_to_image_masks(scene: Scene, key: str, quality: int) -> ImageMasks:
    """The scene as an unlabelled image-mask sample."""
    stack = np.asfortranarray(np.stack(annotated_masks(scene), axis=-1).astype(np.uint8))
    counts = tuple(item["counts"] for item in coco_mask.encode(stack))
    height, width = scene.image.shape[:2]
    return ImageMasks(
        key=key,
        image=encode_image(scene.image, quality),
        height=height,
        width=width,
        counts=counts,
        predicted_iou=(1.0,) * len(counts),
        stability_score=(1.0,) * len(counts),
    )


def entities(scene: Scene) -> list[str]:
    """Names of what a caption may mention: every object of at least 16 visible pixels, then the grounds; no name twice."""
    seen = [item.class_index for item in scene.objects if item.mask.sum() >= MIN_MASK_AREA]
    return [CLASS_NAMES[index] for index in dict.fromkeys([*seen, *(index for index, _ in scene.grounds)])]


OPENINGS = ("", "a photo of ", "there is ", "a picture with ", "this scene shows ")


def write_caption(names: list[str], rng: np.random.Generator, noise_share: float) -> str:
    """A caption that mentions the named entities in random order.

    Args:
        names: entity names, objects and grounds.
        rng: random stream.
        noise_share: probability that the caption is noisy: one entity is left out, or one thing is given a wrong (not held-out) name.
    """
    things = [name for name in names if name not in GROUNDS]
    things = [things[i] for i in rng.permutation(len(things))]
    if things and rng.random() < noise_share:
        if len(things) > 1 and rng.random() < 0.5:
            things.pop()
        else:
            wrong = rng.choice([i for i in range(len(THING_CLASSES)) if i not in HELD_OUT])
            things[0] = CLASS_NAMES[int(wrong)]
    phrases = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in things]
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    grounds = " and ".join(name for name in names if name in GROUNDS)
    place = f" on {grounds}" if listed and grounds else grounds
    return f"{OPENINGS[rng.integers(len(OPENINGS))]}{listed}{place}"


# Streams of the three sets never meet: the second number of the seed sequence is the set's.
MASK_STREAM, TEXT_STREAM, EVALUATION_STREAM, PRETRAINING_STREAM = range(4)


def scene_rng(seed: int, stream: int, index: int) -> np.random.Generator:
    """The random stream of one scene."""
    return np.random.default_rng([seed, stream, index])


def image_masks(config: SceneConfig, seed: int, index: int) -> ImageMasks:
    """Sample `index` of the image-mask set (all classes occur, none is named)."""
    scene = draw_scene(config, scene_rng(seed, MASK_STREAM, index), held_out=True)
    return scene_to_image_masks(scene, f"sa_{index + 1}", config.jpeg_quality)


def image_text(config: SceneConfig, seed: int, index: int, noise_share: float) -> ImageText:
    """Sample `index` of the image-text set."""
    rng = scene_rng(seed, TEXT_STREAM, index)
    scene = draw_scene(config, rng, held_out=False)
    caption = write_caption(entities(scene), rng, noise_share)
    return ImageText(key=f"text_{index + 1}", image=encode_image(scene.image, config.jpeg_quality), caption=caption)
