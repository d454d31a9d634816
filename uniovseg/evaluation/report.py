"""A report for people: figures, classes, and the worst and best images beside their ground truth, in one HTML file that needs no other."""

import base64
import colorsys
import heapq
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from uniovseg.data.benchmarks import as_semantic
from uniovseg.evaluation.words import PanopticResult, SemanticResult
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pictures import Picture, draw_masks, tile
from uniovseg.records import Vocabulary

SIDE = 320
"""Longer side of each of a row's three pictures, pixels."""

LEGEND = 12
"""Most classes named under a row."""

STYLE = "body{font:14px sans-serif;margin:2em}td,th{padding:2px 10px;text-align:right}td:first-child{text-align:left}img{max-width:100%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One image of the report.

    Attributes:
        key: which image.
        figure: its own score in [0, 1].
        jpeg: image, ground truth and prediction side by side.
        legend: (class name, colour as #rrggbb), largest first.
    """

    key: str
    figure: float
    jpeg: bytes
    legend: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Extremes:
    """The `count` worst and best images of those added; images without a figure are left out."""

    count: int
    _worst: list[tuple[float, int, ImageRow]] = field(default_factory=list)
    _best: list[tuple[float, int, ImageRow]] = field(default_factory=list)
    _added: int = 0

    def add(self, row: ImageRow) -> None:
        """Consider one more image."""
        if math.isnan(row.figure) or not self.count:
            return
        self._added += 1
        for heap, rank in ((self._worst, -row.figure), (self._best, row.figure)):
            entry = (rank, -self._added, row)  # of equals, the first added stays
            if len(heap) < self.count:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)

    def worst(self) -> list[ImageRow]:
        """Worst first."""
        return [row for *_, row in sorted(self._worst, reverse=True)]

    def best(self) -> list[ImageRow]:
        """Best first."""
        return [row for *_, row in sorted(self._best, reverse=True)]


def semantic_row(result: SemanticResult, vocabulary: Vocabulary) -> ImageRow:
    """An image with its mean IoU."""
    truth, predicted = result.sample.labels, result.predicted
    panels = (result.image, paint(result.image, truth, truth), paint(result.image, predicted, predicted))
    return ImageRow(key=result.sample.key, figure=result.score.miou(), jpeg=_side_by_side(panels), legend=_legend((truth, predicted), vocabulary))


def panoptic_row(result: PanopticResult, vocabulary: Vocabulary) -> ImageRow:
    """An image with its panoptic quality."""
    truth = as_semantic(result.sample).labels
    classes = np.full(len(result.predicted.segments) + 1, -1, np.int32)
    for segment in result.predicted.segments:
        classes[segment.id] = segment.class_index
    predicted = classes[result.predicted.ids]
    panels = (result.image, paint(result.image, truth, result.sample.truth.ids), paint(result.image, predicted, result.predicted.ids))
    return ImageRow(
        key=result.sample.key, figure=result.score.quality().pq, jpeg=_side_by_side(panels), legend=_legend((truth, predicted), vocabulary)
    )


def masks_row(key: str, figure: float, image: Picture, truth: RunLengthMasks, predicted: RunLengthMasks) -> ImageRow:
    """An image with masks that are paired: a ground-truth mask and its prediction have one colour."""
    panels = (image, draw_masks(image, truth), draw_masks(image, predicted))
    return ImageRow(key=key, figure=figure, jpeg=_side_by_side(panels), legend=())


def class_colour(index: int) -> tuple[int, int, int]:
    """The RGB colour of a class; neighbours in the vocabulary differ much."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55 + 0.45 * (index % 3) / 2, 0.95 - 0.35 * (index % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def paint(image: Picture, classes: NDArray[np.int32], segments: NDArray[np.int32]) -> Picture:
    """The image [H, W, 3] with classes [H, W] in colour (below 0: darkened) and white lines between segments [H, W]."""
    present, place = np.unique(classes, return_inverse=True)
    colours = np.array([class_colour(index) if index >= 0 else (0, 0, 0) for index in present.tolist()], np.float32)
    painted = 0.35 * image + 0.65 * colours[place.reshape(classes.shape)]
    border = np.zeros(classes.shape, bool)
    border[1:] |= segments[1:] != segments[:-1]
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    painted[border] = 255
    return painted.astype(np.uint8)


def _side_by_side(panels: Sequence[Picture]) -> bytes:
    height, width = panels[0].shape[:2]
    sheet = tile(panels, len(panels), SIDE)[: max(1, round(height * SIDE / max(height, width)))]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(sheet[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return data.tobytes()


def _legend(maps: Sequence[NDArray[np.int32]], vocabulary: Vocabulary) -> tuple[tuple[str, str], ...]:
    """The largest classes of some maps."""
    index, pixels = np.unique(np.concatenate([labels.ravel() for labels in maps]), return_counts=True)
    order = [int(index[place]) for place in np.argsort(-pixels, kind="stable") if 0 <= index[place] < len(vocabulary)]
    return tuple((vocabulary.categories[item].name, "#{:02x}{:02x}{:02x}".format(*class_colour(item))) for item in order[:LEGEND])


def render_html(title: str, figures: Mapping[str, object], classes: Sequence[Mapping[str, object]], extremes: Extremes) -> str:
    """The report as one HTML page.

    Args:
        title: its heading.
        figures: names and values at the top.
        classes: one row a class, all with the same keys.
        extremes: the images to show.
    """
    parts = [f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"]
    parts.append(_table([{"figure": name, "value": value} for name, value in figures.items()]))
    for heading, rows in (("Worst images", extremes.worst()), ("Best images", extremes.best())):
        if rows:
            parts.append(f"<h2>{heading}</h2><p>image, ground truth, prediction</p>")
            parts += [_figure(row) for row in rows]
    if classes:
        parts.append(f"<h2>Classes</h2>{_table(classes)}")
    return "\n".join(parts) + "\n"


def _figure(row: ImageRow) -> str:
    chips = " ".join(f"<span><b style='color:{colour}'>&#9632;</b>&nbsp;{html.escape(name)}</span>" for name, colour in row.legend)
    data = base64.b64encode(row.jpeg).decode()
    return f"<p><b>{html.escape(row.key)}</b>: {row.figure:.3f}<br><img src='data:image/jpeg;base64,{data}'><br>{chips}</p>"


def _table(rows: Iterable[Mapping[str, object]]) -> str:
    listed = list(rows)
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in listed[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_text(value))}</td>" for value in row.values()) + "</tr>" for row in listed)
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
