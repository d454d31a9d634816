import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

from uniovseg.data import shapes, vocabulary
from uniovseg.data.vocabulary import FILES, PACKAGED, load_vocabulary
from uniovseg.errors import DataError, MissingFileError
from uniovseg.records import Category

REAL = Path(os.environ.get("UNIOVSEG_REAL_DATA", "/nowhere"))
LABELS = REAL / "openseg_labels"

COUNTS = {  # classes, stuff, smallest and largest id
    "ade20k_150": (150, 50, 0, 149),
    "ade20k_847": (847, 155, 0, 846),
    "cityscapes": (19, 11, 0, 18),
    "coco_panoptic": (133, 53, 1, 200),
    "coco_stuff": (171, 91, 1, 182),
    "pc_459": (459, 67, 0, 458),
    "pc_59": (59, 21, 0, 58),
    "voc_20": (20, 0, 0, 19),
    "voc_21": (21, 1, 0, 20),
    "shapes": (38, 6, 0, 37),
}
OPENSEG = {
    "ade20k_150": ("ade20k_150", 1),
    "ade20k_847": ("ade20k_847", 1),
    "cityscapes": ("cityscapes", 0),
    "coco_panoptic": ("coco_panoptic", 0),
    "coco_stuff": ("coco_stuff", 0),
    "pc_459": ("pascal_ctx_459", 1),
    "pc_59": ("pascal_ctx_59", 1),
    "voc_21": ("pascal_voc_21", 0),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_what_comes_with_the_package(name: str) -> None:
    found = load_vocabulary(name)
    classes, stuff, first, last = COUNTS[name]
    assert found.name == name
    assert len(found) == classes
    ids = [category.id for category in found.categories]
    assert ids == sorted(set(ids))
    assert (ids[0], ids[-1]) == (first, last)
    assert sum(not category.is_thing for category in found.categories) == stuff
    for category in found.categories:
        assert category.name == category.synonyms[0] or name == "shapes"
        assert len(set(category.synonyms)) == len(category.synonyms)
        assert all(word == word.strip() and word for word in category.synonyms)


def test_every_packaged_file_has_a_name() -> None:
    folder = resources.files("uniovseg") / "data/vocabularies"
    assert sorted(item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json")) == sorted(FILES)
    assert sorted(COUNTS) == sorted(PACKAGED)


def test_some_classes_that_everybody_knows() -> None:
    by_name = {name: {category.name: category for category in load_vocabulary(name).categories} for name in FILES}
    assert by_name["coco_panoptic"]["cat"] == Category(17, "cat", ("cat", "cats", "kitties", "kitty"))
    assert by_name["ade20k_150"]["wall"].id == 0
    assert not by_name["ade20k_150"]["sky"].is_thing
    assert by_name["ade20k_150"]["flag"].id == 149
    assert by_name["cityscapes"]["bicycle"] == Category(18, "bicycle", ("bicycle", "bicycles", "bike", "bikes"))
    assert by_name["voc_20"]["aeroplane"].id == 0
    assert by_name["voc_21"]["aeroplane"].id == 1
    assert by_name["pc_59"]["person"].is_thing
    assert not by_name["pc_459"]["grass"].is_thing


def test_the_shapes_world() -> None:
    found = load_vocabulary("shapes")
    assert sorted(name for category in found.categories for name in category.synonyms) == sorted(shapes.CLASS_NAMES)
    for category in found.categories[:32]:
        pattern, colour, _ = category.name.split()
        assert category.synonyms == tuple(f"{pattern} {colour} {shape}" for shape in shapes.SHAPES)
    assert [category.name for category in found.categories if not category.is_thing] == list(shapes.GROUNDS)


@pytest.mark.skipif(not LABELS.exists(), reason="UNIOVSEG_REAL_DATA is not set: no OpenSeg label files")
@pytest.mark.parametrize("name", OPENSEG)
def test_packaged_words_are_those_of_the_label_files(name: str) -> None:
    file, shift = OPENSEG[name]
    theirs = load_vocabulary(str(LABELS / f"{file}_with_prompt_eng.txt"))
    ours = load_vocabulary(name)
    assert [(category.id - shift, category.synonyms) for category in theirs.categories] == [
        (category.id, category.synonyms) for category in ours.categories
    ]


@pytest.mark.skipif(not LABELS.exists(), reason="UNIOVSEG_REAL_DATA is not set: no OpenSeg label files")
@pytest.mark.parametrize(("file", "classes"), [("lvis_1203", 1203), ("mapillary_vistas", 65)])
def test_other_label_files(file: str, classes: int) -> None:
    assert len(load_vocabulary(str(LABELS / f"{file}_with_prompt_eng.txt"))) == classes


@pytest.mark.skipif(not (REAL / "coco128").exists(), reason="UNIOVSEG_REAL_DATA is not set: no coco128")
def test_coco_ids_and_things_are_those_of_its_panoptic_json() -> None:
    file = REAL / "coco128/panoptic_segmentation/annotations/panoptic_val2017.json"
    theirs = json.loads(file.read_text())["categories"]
    ours = load_vocabulary("coco_panoptic").categories
    assert [(item["id"], bool(item["isthing"])) for item in theirs] == [(item.id, item.is_thing) for item in ours]


@pytest.mark.parametrize("source", ["cat,  wooden   table ,grass", ["cat", "wooden table", " grass "], ("cat", "wooden table", "grass")])
def test_words(source: str | Sequence[str]) -> None:
    assert load_vocabulary(source).categories == (
        Category(0, "cat", ("cat",)),
        Category(1, "wooden table", ("wooden table",)),
        Category(2, "grass", ("grass",)),
    )


def test_one_word() -> None:
    assert load_vocabulary("cat, ").categories == load_vocabulary(["cat"]).categories == (Category(0, "cat", ("cat",)),)


def test_a_label_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("0:invalid_class_id\n3: cat,kitty, cat\n\n1:tv: flat\n")
    found = load_vocabulary(str(path))
    assert found.name == "mine"
    assert found.categories == (Category(3, "cat", ("cat", "kitty")), Category(1, "tv: flat", ("tv: flat",)))


def test_a_file_of_our_form(tmp_path: Path) -> None:
    text = '{"name": "pets", "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "sky", "synonyms": ["clouds"], "thing": false}]}'
    path = tmp_path / "any.json"
    path.write_text(text)
    found = load_vocabulary(str(path))
    assert found.name == "pets"
    assert found.categories == (Category(4, "cat", ("cat",)), Category(2, "sky", ("sky", "clouds"), is_thing=False))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("coco_panoptc", r"did you mean 'coco_panoptic'\?.*seen: 'coco_panoptc'.*ade20k_150"),
        ("cat", "a single word needs a comma after it"),
        ("", "no vocabulary of this name"),
        ("cat, dog,,", "empty; seen: number 3 of 3"),
        (["cat", " "], "empty; seen: number 2 of 2"),
        ("cat, dog, Cat", "repeated; seen: cat"),
        ([], "too few or too many classes; seen: words: 0"),
    ],
)
def test_words_that_make_no_vocabulary(source: str | list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_vocabulary(source)


def test_too_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_CLASSES", 3)
    assert len(load_vocabulary("a,b,c")) == 3
    with pytest.raises(DataError, match="seen: words: 4; allowed: 1 to 3"):
        load_vocabulary("a,b,c,d")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "0:cat\nno colon\n", "line 2: 'no colon'"),
        ("a.txt", "x:cat\n", "line 1"),
        ("a.txt", "0:cat,,kitty\n", "empty word.*id 0"),
        ("a.txt", "0:cat\n0:dog\n", "ids of the vocabulary are repeated; seen: a: 0"),
        ("a.txt", "0:invalid_class_id\n", "too few"),
        ("a.json", "{", "not a vocabulary file"),
        ("a.json", "[]", "not a vocabulary file"),
        ("a.json", '{"name": "x", "categories": [{"id": 1}]}', "KeyError 'name'"),
        ("a.json", '{"name": "x", "categories": [{"id": 1, "name": 3}]}', "not a vocabulary file"),
        ("a.json", '{"name": "x", "categories": [{"id": 1, "name": "a", "synonyms": "bc"}]}', "not a vocabulary file"),
        ("a.json", '{"name": "x", "categories": [{"id": 1, "name": ""}]}', "empty word"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_vocabulary(str(path))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0:caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        load_vocabulary(str(path))
    with pytest.raises(MissingFileError):
        load_vocabulary(str(tmp_path / "b.txt"))
