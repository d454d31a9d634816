"""The data sets of the papers' tables on disk, and any COCO panoptic file: images with ground truth, one at a time.

A set lies below a root folder in the layout that this field has settled on (detectron2's). What the labels are stored as differs: class indices in
prepared sets; raw values with holes, or shifted by one, in sets as released; segments in panoptic ones. What is read is the same for all: class
indices of the set's vocabulary, `UNLABELLED` where there is no class; or a `PanopticTruth`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uniovseg import storage
from uniovseg.config import nearest
from uniovseg.data.images import decode_image
from uniovseg.data.label_maps import decode_labels
from uniovseg.data.panoptic import PanopticEntry, category_indices, decode_ids, read_entries, semantic_truth, truth_of
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError, DataError
from uniovseg.records import PanopticTruth, Vocabulary
from uniovseg.storage import Location

LabelMap = NDArray[np.int32]

UNLABELLED = -1
"""In a label map: no class; the pixel does not count."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes' own label id of each of the 19 classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFolder:
    """Label maps in a folder, at any depth, beside a folder of images of the same names.

    Attributes:
        images, labels: the folders, below the root.
        image_suffix, label_suffix: what follows the common part of the names.
        ignore: value that is no class.
        values: the stored value of each class, everything else being no class; None: the value is the class index.
    """

    images: str
    labels: str
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    ignore: int = 255
    values: Sequence[int] | None = None

    def describe(self) -> str:
        """The layout in words."""
        return f"{self.images}/*{self.image_suffix} and {self.labels}/*{self.label_suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticFiles:
    """A COCO panoptic file with its PNGs and images.

    Attributes:
        annotations: the JSON file, below the root.
        maps: folder of the PNGs.
        images: folder of the images.
        image_suffix: None: the JSON has the images' names; else an image is the file, in folders at any depth, named its id and this.
        category_ids: the JSON's id of each class; None: the vocabulary's ids.
    """

    annotations: str
    maps: str
    images: str
    image_suffix: str | None = None
    category_ids: Sequence[int] | None = None

    def describe(self) -> str:
        """The layout in words."""
        return f"{self.annotations}, {self.maps}/*.png and {self.images}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A data set as its papers use it.

    Attributes:
        vocabulary: name of its classes.
        layouts: where it may lie; the first that is there is read.
        images: how many it has.
        prepare: how the first layout comes to be.
    """

    vocabulary: str
    layouts: tuple[LabelFolder | PanopticFiles, ...]
    images: int
    prepare: str


def _prepared(name: str, source: str) -> str:
    return f"get {source}, then: python jobs/prepare.py {name}"


_ADE = "ADEChallengeData2016"
_ADE_SOURCE = "ADEChallengeData2016.zip (data.csail.mit.edu/places/ADEchallenge)"
_COCO = PanopticFiles(annotations="coco/annotations/panoptic_val2017.json", maps="coco/panoptic_val2017", images="coco/val2017")
_COCO_SOURCE = "val2017.zip and panoptic_annotations_trainval2017.zip (cocodataset.org), the PNGs unpacked to coco/panoptic_val2017"
_CITY = "cityscapes/gtFine/val"
_CITY_IMAGES = "cityscapes/leftImg8bit/val"

BENCHMARKS: dict[str, Benchmark] = {
    "coco_panoptic": Benchmark(vocabulary="coco_panoptic", layouts=(_COCO,), images=5000, prepare=f"get {_COCO_SOURCE}"),
    "coco_semantic": Benchmark(vocabulary="coco_panoptic", layouts=(_COCO,), images=5000, prepare=f"get {_COCO_SOURCE}"),
    "coco_stuff": Benchmark(
        vocabulary="coco_stuff",
        layouts=(
            LabelFolder(images="coco/val2017", labels="coco/stuffthingmaps_detectron2/val2017"),
            LabelFolder(images="coco/val2017", labels="coco-stuff/annotations_detectron2/val2017"),
        ),
        images=5000,
        prepare=_prepared("coco_stuff", "val2017.zip and stuffthingmaps_trainval2017.zip, unpacked to coco/stuffthingmaps/val2017"),
    ),
    "ade20k_150": Benchmark(
        vocabulary="ade20k_150",
        layouts=(
            LabelFolder(images=f"{_ADE}/images/validation", labels=f"{_ADE}/annotations_detectron2/validation"),
            LabelFolder(images=f"{_ADE}/images/validation", labels=f"{_ADE}/annotations/validation", values=range(1, 151)),
        ),
        images=2000,
        prepare=f"get {_ADE_SOURCE}; it is read as released too",
    ),
    "ade20k_panoptic": Benchmark(
        vocabulary="ade20k_150",
        layouts=(
            PanopticFiles(
                annotations=f"{_ADE}/ade20k_panoptic_val.json",
                maps=f"{_ADE}/ade20k_panoptic_val",
                images=f"{_ADE}/images/validation",
                category_ids=range(150),
            ),
        ),
        images=2000,
        prepare=f"get {_ADE_SOURCE} and annotations_instance.tar, then Mask2Former's datasets/prepare_ade20k_pan_seg.py",
    ),
    "ade20k_847": Benchmark(
        vocabulary="ade20k_847",
        layouts=(
            LabelFolder(
                images="ADE20K_2021_17_01/images_detectron2/validation",
                labels="ADE20K_2021_17_01/annotations_detectron2/validation",
                label_suffix=".tif",
                ignore=65535,
            ),
        ),
        images=2000,
        prepare=_prepared("ade20k_847", "ADE20K_2021_17_01 (groups.csail.mit.edu/vision/datasets/ADE20K)"),
    ),
    "pc_59": Benchmark(
        vocabulary="pc_59",
        layouts=(LabelFolder(images="pascal_ctx_d2/images/validation", labels="pascal_ctx_d2/annotations_ctx59/validation"),),
        images=5104,
        prepare=_prepared("pc_59", "VOC2010 and trainval_merged.json of the PASCAL-Context detail API, in VOCdevkit/VOC2010"),
    ),
    "pc_459": Benchmark(
        vocabulary="pc_459",
        layouts=(
            LabelFolder(
                images="pascal_ctx_d2/images/validation", labels="pascal_ctx_d2/annotations_ctx459/validation", label_suffix=".tif", ignore=65535
            ),
        ),
        images=5104,
        prepare=_prepared("pc_459", "VOC2010 and the PASCAL-Context trainval/*.mat, in VOCdevkit/VOC2010"),
    ),
    "voc_20": Benchmark(
        vocabulary="voc_20",
        layouts=(LabelFolder(images="pascal_voc_d2/images/validation", labels="pascal_voc_d2/annotations_pascal20/validation"),),
        images=1449,
        prepare=_prepared("voc_20", "VOCtrainval_11-May-2012.tar, in VOCdevkit/VOC2012"),
    ),
    "voc_21": Benchmark(
        vocabulary="voc_21",
        layouts=(LabelFolder(images="pascal_voc_d2/images/validation", labels="pascal_voc_d2/annotations_pascal21/validation"),),
        images=1449,
        prepare=_prepared("voc_21", "VOCtrainval_11-May-2012.tar, in VOCdevkit/VOC2012"),
    ),
    "cityscapes": Benchmark(
        vocabulary="cityscapes",
        layouts=(
            LabelFolder(images=_CITY_IMAGES, labels=_CITY, image_suffix="_leftImg8bit.png", label_suffix="_gtFine_labelTrainIds.png"),
            LabelFolder(
                images=_CITY_IMAGES, labels=_CITY, image_suffix="_leftImg8bit.png", label_suffix="_gtFine_labelIds.png", values=CITYSCAPES_IDS
            ),
        ),
        images=500,
        prepare="get gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip (cityscapes-dataset.com); it is read as released too",
    ),
    "cityscapes_panoptic": Benchmark(
        vocabulary="cityscapes",
        layouts=(
            PanopticFiles(
                annotations="cityscapes/gtFine/cityscapes_panoptic_val.json",
                maps="cityscapes/gtFine/cityscapes_panoptic_val",
                images=_CITY_IMAGES,
                image_suffix="_leftImg8bit.png",
                category_ids=CITYSCAPES_IDS,
            ),
        ),
        images=500,
        prepare=_prepared("cityscapes_panoptic", "gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip (cityscapes-dataset.com)"),
    ),
    "shapes": Benchmark(
        vocabulary="shapes",
        layouts=(PanopticFiles(annotations="evaluation/panoptic.json", maps="evaluation/panoptic", images="evaluation/images"),),
        images=128,
        prepare="python jobs/make_shapes.py output=ROOT",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image and where its ground truth lies, not yet read.

    Attributes:
        key: unique in its set.
        image: the image file.
        truth: the label map or panoptic PNG.
        entry: the panoptic annotation; None for label maps.
    """

    key: str
    image: Location
    truth: Location
    entry: PanopticEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticSample:
    """An image file with its ground truth [H, W]: class indices, or `UNLABELLED`."""

    key: str
    image: Location
    labels: LabelMap


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticSample:
    """An image file with its panoptic ground truth."""

    key: str
    image: Location
    truth: PanopticTruth


def as_semantic(sample: PanopticSample) -> SemanticSample:
    """The classes of a panoptic ground truth, crowds included, as a label map."""
    return SemanticSample(key=sample.key, image=sample.image, labels=semantic_truth(sample.truth, UNLABELLED))


def read_image(sample: SemanticSample | PanopticSample) -> NDArray[np.uint8]:
    """The image [H, W, 3] uint8 RGB of a sample. Raises DataError naming it when it cannot be decoded or is not of the ground truth's size."""
    try:
        image = decode_image(storage.read_bytes(sample.image))
    except DataError as error:
        raise DataError(f"{sample.key}: {error}", seen=sample.image.uri) from error
    size = (sample.labels if isinstance(sample, SemanticSample) else sample.truth.ids).shape
    if image.shape[:2] != size:
        raise DataError(f"{sample.key}: the ground truth is of another size than the image", seen=size, allowed=image.shape[:2])
    return image


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSet:
    """Images with ground truth; small enough to send to other processes.

    Attributes:
        name: for people.
        vocabulary: its classes.
        items: its images.
        folder: how label maps are stored; None for panoptic sets.
        indices: class index of each category id, for panoptic sets.
    """

    name: str
    vocabulary: Vocabulary
    items: tuple[Item, ...]
    folder: LabelFolder | None = None
    indices: Mapping[int, int] | None = None

    def semantic(self, items: Iterable[Item] | None = None) -> Iterator[SemanticSample]:
        """Images with label maps, read one at a time; of a panoptic set, its segments' classes. Raises DataError or StorageError naming the image."""
        for item in self.items if items is None else items:
            yield SemanticSample(key=item.key, image=item.image, labels=self._labels(item))

    def panoptic(self, items: Iterable[Item] | None = None) -> Iterator[PanopticSample]:
        """Images with segments, read one at a time. Raises DataError or StorageError naming the image, or when the set has only label maps."""
        for item in self.items if items is None else items:
            yield PanopticSample(key=item.key, image=item.image, truth=self._truth(item))

    def _labels(self, item: Item) -> LabelMap:
        if self.folder is None:
            return semantic_truth(self._truth(item), UNLABELLED)
        try:
            return _class_indices(decode_labels(storage.read_bytes(item.truth)), self.folder)
        except DataError as error:
            raise DataError(f"{item.key}: {error}", seen=item.truth.uri) from error

    def _truth(self, item: Item) -> PanopticTruth:
        if item.entry is None or self.indices is None:
            raise DataError(f"{self.name} has no panoptic ground truth", allowed=", ".join(_panoptic_names()))
        try:
            return truth_of(item.entry, decode_ids(storage.read_bytes(item.truth)), self.indices)
        except DataError as error:
            raise DataError(f"{item.key}: {error}", seen=item.truth.uri) from error


def _class_indices(stored: LabelMap, folder: LabelFolder) -> LabelMap:
    if folder.values is None:
        return np.where(stored == folder.ignore, np.int32(UNLABELLED), stored)
    table = np.full(65536, UNLABELLED, np.int32)
    table[list(folder.values)] = np.arange(len(folder.values))
    return table[stored]


def _panoptic_names() -> list[str]:
    return [name for name, benchmark in BENCHMARKS.items() if isinstance(benchmark.layouts[0], PanopticFiles)]


def with_ids_of(benchmark: str, vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary of a panoptic benchmark's classes with the category ids of its ground truth: Cityscapes' are 7 to 33, its vocabulary's 0 to 18.

    Raises:
        ConfigError: there is no such panoptic benchmark, or the vocabulary has another number of classes.
    """
    layout = BENCHMARKS[benchmark].layouts[0] if benchmark in BENCHMARKS else None
    if not isinstance(layout, PanopticFiles):
        raise ConfigError("no such panoptic benchmark", seen=benchmark, allowed=", ".join(_panoptic_names()))
    ids = layout.category_ids or [item.id for item in load_vocabulary(BENCHMARKS[benchmark].vocabulary).categories]
    if len(ids) != len(vocabulary):
        raise ConfigError(
            f"the vocabulary does not have the classes of {benchmark}", seen=f"{len(vocabulary)} classes", allowed=f"{len(ids)} classes"
        )
    return replace(vocabulary, categories=tuple(replace(item, id=number) for item, number in zip(vocabulary.categories, ids, strict=True)))


def open_benchmark(name: str, root: str) -> LabelledSet:
    """A benchmark below a root folder.

    Raises:
        ConfigError: there is no benchmark of this name.
        DataError: it is not there; the message has the expected layout and how to prepare it.
    """
    if name not in BENCHMARKS:
        raise ConfigError("no such benchmark", seen=name, allowed=f"{', '.join(BENCHMARKS)}{nearest(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    place = Location.of(root)
    for layout in benchmark.layouts:
        if isinstance(layout, PanopticFiles):
            if storage.exists(place / layout.annotations):
                return _panoptic_set(name, place, layout, load_vocabulary(benchmark.vocabulary))
        else:
            items = _label_items(place, layout)
            if items:
                return LabelledSet(name=name, vocabulary=load_vocabulary(benchmark.vocabulary), items=items, folder=layout)
    expected = "; or ".join(layout.describe() for layout in benchmark.layouts)
    raise DataError(f"{name} is not here", seen=place.uri, allowed=f"below it {expected}", fix=benchmark.prepare)


def open_panoptic(annotations: str, images: str, maps: str | None = None, vocabulary: Vocabulary | None = None) -> LabelledSet:
    """Any COCO panoptic file.

    Args:
        annotations: the JSON file.
        images: folder of the images.
        maps: folder of the PNGs; None: a folder beside the JSON with its name.
        vocabulary: classes with the ids of the file's categories; None: the file's own categories.

    Raises:
        StorageError: the file cannot be read.
        DataError: it is no panoptic JSON with images.
    """
    location = Location.of(annotations)
    layout = PanopticFiles(
        annotations=location.uri, maps=Location.of(maps).uri if maps else location.uri.removesuffix(".json"), images=Location.of(images).uri
    )
    return _panoptic_set(location.name.removesuffix(".json"), None, layout, vocabulary)


def _panoptic_set(name: str, root: Location | None, layout: PanopticFiles, vocabulary: Vocabulary | None) -> LabelledSet:
    annotations, maps, images = (root / path if root else Location.of(path) for path in (layout.annotations, layout.maps, layout.images))
    own, entries = read_entries(annotations)
    classes = vocabulary or own
    if classes is None:
        raise DataError("the panoptic file lists no categories", seen=annotations.uri, fix="give a vocabulary with its category ids")
    by_id = _by_name(images, layout.image_suffix) if layout.image_suffix else {}
    items = []
    for entry in entries:
        image = by_id.get(entry.image_id) if layout.image_suffix else (images / entry.image if entry.image else None)
        if image is None:
            raise DataError(f"no image belongs to annotation {entry.image_id}", seen=annotations.uri, allowed=f"{layout.describe()}")
        items.append(Item(key=entry.image_id, image=image, truth=maps / entry.png, entry=entry))
    indices = category_indices(classes) if layout.category_ids is None else {number: index for index, number in enumerate(layout.category_ids)}
    return LabelledSet(name=name, vocabulary=classes, items=tuple(items), indices=indices)


def _by_name(folder: Location, suffix: str) -> dict[str, Location]:
    return {item.name.removesuffix(suffix): item for item in storage.list_files(folder, suffix, recursive=True)}


def _label_items(root: Location, layout: LabelFolder) -> tuple[Item, ...]:
    """The images of a layout, by the label maps; empty where there is none of them."""
    labels = root / layout.labels
    items = []
    for item in storage.list_files(labels, layout.label_suffix, recursive=True):
        key = item.uri.removeprefix(labels.uri + "/").removesuffix(layout.label_suffix)
        items.append(Item(key=key, image=root / layout.images / f"{key}{layout.image_suffix}", truth=item))
    return tuple(items)
