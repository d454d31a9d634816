import base64
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from uniovseg.data.benchmarks import UNLABELLED, PanopticSample, SemanticSample
from uniovseg.data.images import decode_image
from uniovseg.evaluation.report import LEGEND, SIDE, Extremes, ImageRow, class_colour, paint, panoptic_row, render_html, semantic_row
from uniovseg.evaluation.words import PanopticResult, SemanticResult
from uniovseg.metrics import panoptic_score, semantic_score
from uniovseg.records import Category, PanopticMap, PanopticSegment, PanopticTruth, TruthSegment, Vocabulary
from uniovseg.storage import Location

WORDS = Vocabulary("words", tuple(Category(index, name, (name,)) for index, name in enumerate(("cat", "<grass>", "sky"))))
NOWHERE = Location("/nowhere.jpg")


def row(key: str, figure: float) -> ImageRow:
    return ImageRow(key=key, figure=figure, jpeg=key.encode(), legend=(("<grass>", "#00ff00"),))


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_the_worst_and_best_are_kept(count: int) -> None:
    figures = [0.5, 0.1, math.nan, 0.9, 0.1, 0.7, 0.9, 0.3]
    extremes = Extremes(count)
    for index, value in enumerate(figures):
        extremes.add(row(str(index), value))
    ranked = sorted((value, index) for index, value in enumerate(figures) if not math.isnan(value))
    assert [item.key for item in extremes.worst()] == [str(index) for _, index in ranked][:count]
    best = sorted(((-value, index) for value, index in ranked))
    assert [item.key for item in extremes.best()] == [str(index) for _, index in best][:count]


def test_classes_are_coloured_and_segments_outlined() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    classes = np.array([[0, 0, 0, 1, 1, UNLABELLED]] * 4, np.int32)
    painted = paint(image, classes, classes)
    for column, index in ((1, 0), (4, 1)):
        assert painted[2, column].tolist() == [int(35 + 0.65 * value) for value in class_colour(index)]
    assert (painted[:, 3] == 255).all()
    assert (painted[:, 5] == 255).all()
    assert len({class_colour(index) for index in range(150)}) > 140


def test_a_semantic_row_has_three_pictures_the_figure_and_the_classes() -> None:
    labels = np.zeros((100, 200), np.int32)
    labels[:, 150:] = UNLABELLED
    labels[60:] = 1
    predicted = np.ones_like(labels)
    sample = SemanticSample(key="a", image=NOWHERE, labels=labels)
    image = np.full((100, 200, 3), 7, np.uint8)
    result = SemanticResult(sample=sample, image=image, predicted=predicted, score=semantic_score(labels, predicted, 3, UNLABELLED))
    made = semantic_row(result, WORDS)
    assert made.figure == pytest.approx(result.score.miou())
    assert decode_image(made.jpeg).shape == (SIDE // 2, 3 * SIDE, 3)
    assert decode_image(made.jpeg)[:, : SIDE - 8].mean() == pytest.approx(7, abs=2)
    assert [name for name, _ in made.legend] == ["<grass>", "cat"]


def test_a_panoptic_row() -> None:
    ids = np.zeros((40, 30), np.int32)
    ids[:20], ids[20:] = 70000, 2
    truth = PanopticTruth(ids, (TruthSegment(70000, 2, 600), TruthSegment(2, 0, 600)))
    predicted = PanopticMap(np.where(ids == 2, 1, 0).astype(np.int32), (PanopticSegment(1, 0, 0.5),))
    sample = PanopticSample(key="b", image=NOWHERE, truth=truth)
    score = panoptic_score(truth, predicted, 3)
    made = panoptic_row(PanopticResult(sample=sample, image=np.zeros((40, 30, 3), np.uint8), predicted=predicted, score=score), WORDS)
    assert made.figure == 0.5
    assert [name for name, _ in made.legend] == ["cat", "sky"]
    picture = decode_image(made.jpeg)
    assert picture.shape == (SIDE, 3 * SIDE, 3)
    assert picture[40, 2 * SIDE + 40].max() < 30  # void of the prediction stays dark
    assert picture[40, SIDE + 40].max() > 60


def test_no_more_than_a_few_classes_are_named() -> None:
    many = Vocabulary("many", tuple(Category(index, str(index), (str(index),)) for index in range(50)))
    labels = np.arange(50, dtype=np.int32).repeat(range(1, 51)).reshape(1, -1)
    result = SemanticResult(
        sample=SemanticSample(key="a", image=NOWHERE, labels=labels),
        image=np.zeros((*labels.shape, 3), np.uint8),
        predicted=labels,
        score=semantic_score(labels, labels, 50, UNLABELLED),
    )
    assert [name for name, _ in semantic_row(result, many).legend] == [str(index) for index in range(49, 49 - LEGEND, -1)]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        assert tag != "script"


def test_the_page_needs_no_other_file_and_escapes_what_it_shows() -> None:
    extremes = Extremes(2)
    for index in range(5):
        extremes.add(row(f"<image {index}>", index / 5))
    page = render_html("a & b", {"miou": 0.25, "none": None, "images": 5}, [{"id": 1, "name": "<grass>", "iou": None}], extremes)
    tags = Tags()
    tags.feed(page)
    assert len(tags.sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    assert base64.b64decode(tags.sources[0].partition(",")[2]) == b"<image 0>"
    assert "<grass>" not in page
    assert "<image" not in page
    assert "a &amp; b" in page
    assert re.search(r"<td>miou</td><td>0\.2500</td>", page)
    assert re.search(r"<td>none</td><td>-</td>", page)
