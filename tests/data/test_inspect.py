import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from tests.data.sa1b_samples import make_record
from uniovseg.data import entities, pairs
from uniovseg.data.inspect import inspect_shards, pictures_of_pairs
from uniovseg.errors import DataError
from uniovseg.records import ImageEntities, ImageMasks, ImagePairs, Rejected
from uniovseg.runtime.shards import PartRange, write_manifest, write_part, write_records
from uniovseg.storage import Location


def test_inspect_shows_counts_rejects_and_pictures(tmp_path: Path) -> None:
    output = Location.of(tmp_path / "set")
    rejected = Rejected(key="sa_99", source="x/a.tar", offset=512, reason="bad_json", detail="seen: [b'x']")
    samples: list[tuple[int, ImageMasks | Rejected]] = [(0, make_record(1)), (1, make_record(2)), (2, make_record(3)), (512, rejected)]
    write_manifest(output, [write_part(PartRange(name="a", source="x/a.tar", begin=0, end=1), samples, output, 2)])
    text = io.StringIO()
    inspect_shards(output.uri, tmp_path / "pictures", Console(file=text, width=200), samples=2)
    shown = " ".join(text.getvalue().replace("│", " ").split())
    for expected in ("samples 3", "9 (3.0 a sample)", "2 of 1 to 2 rows", "bad_json", "sa_99", "seen: [b'x']", "drew 2 samples"):
        assert expected in shown
    picture = cv2.imread(str(tmp_path / "pictures/samples.png"))
    assert picture is not None and picture.shape == (384, 768, 3)


def shown_by(uri: str, out: Path) -> str:
    text = io.StringIO()
    inspect_shards(uri, out, Console(file=text, width=200))
    return " ".join(text.getvalue().replace("│", " ").split())


def test_inspect_of_captions_and_of_pairs(tmp_path: Path) -> None:
    scene = make_record(1)
    named = ImageEntities(key="t1", image=scene.image, caption="A [red] star on sand.", entities=("[red] star", "sand"))
    quality, costs = np.ones(len(scene.counts), np.float32), np.zeros((1, len(scene.counts), 2), np.float32)
    paired = ImagePairs(
        key="t1", image=scene.image, height=scene.height, width=scene.width, counts=scene.counts, quality=quality, entities=named.entities,
        sizes=(64,), costs=costs, pairs=np.array([[1, 0]]), pair_costs=np.array([0.25], np.float32),
    )  # fmt: skip
    part = PartRange(name="a", source="x", begin=0, end=1)
    captions, matched = Location.of(tmp_path / "captions"), Location.of(tmp_path / "pairs")
    unnamed = Rejected(key="t2", source="x", offset=1, reason="no_entities", detail="What is it?")
    texts: list[tuple[int, ImageEntities | Rejected]] = [(0, named), (1, unnamed)]
    write_manifest(captions, [write_records(part, texts, captions, 2, entities.to_table)])
    write_manifest(matched, [write_records(part, [(0, paired)], matched, 2, pairs.to_table)])
    shown = shown_by(captions.uri, tmp_path / "drawn_captions")
    assert "entities 2 (2.0 a sample)" in shown and "masks" not in shown
    assert "no_entities 1 the caption names nothing that could be segmented" in shown
    assert "t1 A [red] star on sand. [red] star, sand" in shown
    shown = shown_by(matched.uri, tmp_path / "drawn_pairs")
    assert "pairs 1 (1.0 a sample)" in shown
    plain, drawn = (cv2.imread(str(tmp_path / name / "samples.png")) for name in ("drawn_captions", "drawn_pairs"))
    assert plain is not None and drawn is not None and plain.shape == drawn.shape == (384, 384, 3)
    assert (plain != drawn).any(), "the pair's mask is drawn"


def test_inspect_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest"):
        inspect_shards(str(tmp_path), None, Console(file=io.StringIO()))


def test_a_set_without_pairs_has_no_pictures(tmp_path: Path) -> None:
    output = Location.of(tmp_path / "pairs")
    write_manifest(output, [write_records(PartRange(name="a", source="x", begin=0, end=1), [], output, 2, pairs.to_table)])
    inspect_shards(output.uri, tmp_path / "pictures", Console(file=io.StringIO()))
    assert not (tmp_path / "pictures").exists()
    with pytest.raises(DataError, match="the set has no pairs; seen: the first 3 images of .*pairs"):
        pictures_of_pairs(output.uri, 3)
