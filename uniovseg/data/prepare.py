"""Data sets as released, turned into the layouts that `uniovseg.data.benchmarks` reads (method: section 4.9), and label maps into the one form of
promptable evaluation (method: section 5). Local folders only."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from uniovseg.data.ade20k_full import OBJECTS, decode_objects
from uniovseg.data.benchmarks import CITYSCAPES_IDS
from uniovseg.data.images import decode_image
from uniovseg.data.label_maps import ENDINGS, decode_labels, encode_labels
from uniovseg.data.panoptic import encode_ids
from uniovseg.data.sa1b import IMAGE_ENDINGS
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError, DataError
from uniovseg.ops.run_length import RunLengthMasks

PC59_IDS = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220),
    *(232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""PASCAL Context: the category id of each of the 59 classes."""

ADE_FULL_SIDE = 512
"""ADE20K in full: images whose shorter side is longer are reduced to this, pixels."""

IGNORE = 255
IGNORE_16 = 65535

LabelMap = NDArray[np.int32]


def prepare(name: str, root: str | Path) -> int:
    """Prepare a data set below a root folder; returns the number of images. What is there already is written again.

    Raises:
        ConfigError: the set needs no preparation, or there is none of this name.
        DataError: a file of the release is missing or not as released; the message names it.
    """
    if name not in PREPARATIONS:
        raise ConfigError("this set cannot be prepared", seen=name, allowed=", ".join(PREPARATIONS))
    return PREPARATIONS[name](Path(root))


def _ade20k_150(root: Path) -> int:
    folder = root / "ADEChallengeData2016"
    return _convert(_files(folder / "annotations/validation", "*.png"), folder / "annotations_detectron2/validation", range(1, 151))


def _ade20k_847(root: Path) -> int:
    """From the release's PNGs of object numbers, which lie beside the images in folders of scenes; both are reduced, as everybody's have been."""
    release = root / "ADE20K_2021_17_01"
    target = {kind: release / f"{kind}_detectron2/validation" for kind in ("images", "annotations")}
    table = _table(OBJECTS, IGNORE_16).astype(np.uint16)
    maps = _files(release / "images/ADE/validation", "**/ADE_val_*_seg.png")
    for path in maps:
        stem = path.name.removesuffix("_seg.png")
        photo = _present(path.with_name(f"{stem}.jpg"))
        try:
            labels, image = table[decode_objects(path.read_bytes())], decode_image(photo.read_bytes())
        except DataError as error:
            raise DataError(f"{path}, or its image: {error}") from error
        if image.shape[:2] != labels.shape:
            raise DataError("an image and its segmentation differ in size", seen=f"{path}: {labels.shape}", allowed=image.shape[:2])
        scale = min(1.0, ADE_FULL_SIDE / min(labels.shape))
        size = (round(labels.shape[1] * scale), round(labels.shape[0] * scale))
        _write_image(target["images"] / photo.name, cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
        _write_image(target["annotations"] / f"{stem}.tif", cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST))
    return len(maps)


def _coco_stuff(root: Path) -> int:
    """The released value is COCO's id less 1."""
    values = [category.id - 1 for category in load_vocabulary("coco_stuff").categories]
    folder = root / "coco"
    return _convert(_files(folder / "stuffthingmaps/val2017", "*.png"), folder / "stuffthingmaps_detectron2/val2017", values)


def _voc(classes: int) -> Callable[[Path], int]:
    def run(root: Path) -> int:
        release, target = root / "VOCdevkit/VOC2012", root / "pascal_voc_d2"
        stems = _lines(release / "ImageSets/Segmentation/val.txt")
        _copy([release / f"JPEGImages/{stem}.jpg" for stem in stems], target / "images/validation")
        maps = [release / f"SegmentationClass/{stem}.png" for stem in stems]
        return _convert(maps, target / f"annotations_pascal{classes}/validation", range(21 - classes, 21))

    return run


def _pc_59(root: Path) -> int:
    """From the run lengths of the detail API's file; a later annotation covers an earlier one."""
    release, target = root / "VOCdevkit/VOC2010", root / "pascal_ctx_d2"
    parsed = _detail(release)
    table = _table(PC59_IDS, IGNORE)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for note in parsed["annos_segmentation"]:
        by_image.setdefault(note["image_id"], []).append(note)
    images = [image for image in parsed["images"] if image["phase"] == "val"]
    for image in images:
        labels = np.zeros((image["height"], image["width"]), np.int32)
        for note in by_image.get(image["image_id"], []):
            labels[coco_mask.decode(note["segmentation"]).astype(bool)] = note["category_id"]
        _write(target / f"annotations_ctx59/validation/{Path(image['file_name']).stem}.png", encode_labels(table[labels]))
    _copy([release / "JPEGImages" / image["file_name"] for image in images], target / "images/validation")
    return len(images)


def _pc_459(root: Path) -> int:
    """From the released .mat files: 1 to 459, 0 is unlabelled."""
    release, target = root / "VOCdevkit/VOC2010", root / "pascal_ctx_d2"
    stems = [Path(image["file_name"]).stem for image in _detail(release)["images"] if image["phase"] == "val"]
    table = _table(range(1, 460), IGNORE_16)
    for stem in stems:
        path = release / f"trainval/{stem}.mat"
        try:
            labels = table[loadmat(_present(path))["LabelMap"].astype(np.int32)]
        except (ValueError, KeyError, NotImplementedError) as error:
            raise DataError("not a label map of PASCAL Context", seen=path, allowed="a .mat file with LabelMap") from error
        _write_image(target / f"annotations_ctx459/validation/{stem}.tif", labels.astype(np.uint16))
    _copy([release / f"JPEGImages/{stem}.jpg" for stem in stems], target / "images/validation")
    return len(stems)


def _cityscapes_panoptic(root: Path) -> int:
    """From the released instance ids: a label id for stuff and for groups of things (crowds), label id x 1000 + number for things."""
    folder = root / "cityscapes/gtFine"
    words = load_vocabulary("cityscapes").categories
    is_thing = dict(zip(CITYSCAPES_IDS, (category.is_thing for category in words), strict=True))
    images, annotations = [], []
    for path in _files(folder / "val", "*/*_gtFine_instanceIds.png"):
        ids = decode_labels(path.read_bytes())
        labels = np.where(ids < 1000, ids, ids // 1000)
        kept = np.where(np.isin(labels, CITYSCAPES_IDS), ids, 0)
        key = path.name.removesuffix("_gtFine_instanceIds.png")
        segments = [_city_segment(kept, number, is_thing) for number in np.unique(kept).tolist() if number]
        png = f"{key}_gtFine_panoptic.png"
        _write(folder / "cityscapes_panoptic_val" / png, encode_ids(kept))
        images.append({"id": key, "file_name": f"{key}_leftImg8bit.png", "width": ids.shape[1], "height": ids.shape[0]})
        annotations.append({"image_id": key, "file_name": png, "segments_info": segments})
    categories = [{"id": number, "name": item.name, "isthing": int(item.is_thing)} for number, item in zip(CITYSCAPES_IDS, words, strict=True)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    _write(folder / "cityscapes_panoptic_val.json", text.encode())
    return len(images)


def _city_segment(ids: LabelMap, number: int, is_thing: dict[int, bool]) -> dict[str, Any]:
    label = number if number < 1000 else number // 1000
    ys, xs = np.nonzero(ids == number)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    return {"id": number, "category_id": label, "area": len(ys), "bbox": box, "iscrowd": int(number < 1000 and is_thing[label])}


def _label_maps(root: Path) -> int:
    """From the label maps in ``labels/`` and the images of the same names in ``images/``, at any depth, to ``instances.json``: a mask a value but 0."""
    photos = [path.relative_to(root / "images") for path in _files(root / "images", "**/*") if path.suffix[1:].lower() in IMAGE_ENDINGS]
    by_stem = {name.with_suffix(""): name for name in photos}
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for path in (path for path in _files(root / "labels", "**/*") if path.suffix in ENDINGS):
        stem = path.relative_to(root / "labels").with_suffix("")
        if stem not in by_stem:
            raise DataError("no image belongs to a label map", seen=path, allowed=f"{root / 'images' / stem}.{'|'.join(IMAGE_ENDINGS)}")
        try:
            labels = decode_labels(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        height, width = labels.shape
        images.append({"id": len(images) + 1, "file_name": by_stem[stem].as_posix(), "height": height, "width": width})
        values = np.unique(labels[labels > 0])
        masks = RunLengthMasks.from_dense(torch.from_numpy(labels == values[:, None, None]))
        for counts, area, (x0, y0, x1, y1) in zip(masks.to_counts(), masks.area().tolist(), masks.boxes_xyxy().tolist(), strict=True):
            shape = {"size": [height, width], "counts": counts.decode("ascii")}
            note = {"segmentation": shape, "area": area, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
            notes.append({"id": len(notes) + 1, "image_id": len(images), "category_id": 1, **note})
    parsed = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "mask"}]}
    _write(root / "instances.json", json.dumps(parsed).encode())
    return len(images)


PREPARATIONS: dict[str, Callable[[Path], int]] = {
    "ade20k_150": _ade20k_150,
    "ade20k_847": _ade20k_847,
    "coco_stuff": _coco_stuff,
    "pc_59": _pc_59,
    "pc_459": _pc_459,
    "voc_20": _voc(20),
    "voc_21": _voc(21),
    "cityscapes_panoptic": _cityscapes_panoptic,
    "label_maps": _label_maps,
}


def _convert(maps: list[Path], target: Path, values: Sequence[int]) -> int:
    """Write 8-bit maps of class indices: the position of a stored value among `values`, `IGNORE` for any other."""
    table = _table(values, IGNORE)
    for path in maps:
        _write(target / path.name, encode_labels(table[decode_labels(_present(path).read_bytes())]))
    return len(maps)


def _table(values: Sequence[int], ignore: int) -> LabelMap:
    table = np.full(65536, ignore, np.int32)
    table[list(values)] = np.arange(len(values))
    return table


def _detail(release: Path) -> dict[str, Any]:
    path = _present(release / "trainval_merged.json")
    try:
        parsed = json.loads(path.read_bytes())
        return {"images": parsed["images"], "annos_segmentation": parsed["annos_segmentation"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("not a file of the detail API", seen=path, allowed="JSON with images, annos_segmentation") from error


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError("the release is not here", seen=folder, allowed=f"{folder}/{pattern}")
    return found


def _lines(path: Path) -> list[str]:
    return [line for line in _present(path).read_text().split() if line]


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError("a file of the release is missing", seen=path)
    return path


def _copy(files: list[Path], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(_present(path), target / path.name)


def _write_image(path: Path, pixels: NDArray[Any]) -> None:
    """In the format that the name says, with Pillow's settings (JPEG: quality 75, as the sets that published figures are of)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
