"""Scores of predictions that lie in files, whoever made them."""

from collections.abc import Iterator
from pathlib import Path

from uniovseg import storage
from uniovseg.data.label_maps import ENDINGS, decode_labels
from uniovseg.data.panoptic import category_indices, decode_ids, prediction_of, read_entries, truth_of
from uniovseg.errors import DataError, MissingFileError
from uniovseg.metrics import PanopticScore, SemanticScore, panoptic_score, semantic_score
from uniovseg.records import Vocabulary
from uniovseg.storage import Location

CITYSCAPES_LABELS = "_gtFine_labelTrainIds"
"""Cityscapes keeps several PNGs an image in one folder; this is the name of the one with the 19 classes."""

CITYSCAPES_IMAGE = "_leftImg8bit"
"""How Cityscapes' images end, and the predictions that are named after them."""


def score_panoptic(
    truth_json: str | Path, truth_folder: str | Path, predicted_json: str | Path, predicted_folder: str | Path
) -> Iterator[PanopticScore]:
    """Score saved panoptic predictions, image by image of the ground truth; start the sum from `PanopticScore.zero`.

    Categories and their order are those of the ground truth's JSON (`saved_vocabulary`). Predictions of other images are left out.

    Raises:
        StorageError: a file or folder is missing or cannot be read.
        DataError: a file is not of the panoptic form, an image has no prediction, or one cannot be compared; the message names the image.
    """
    truth_place, predicted_place = _folder(truth_folder), _folder(predicted_folder)
    vocabulary = saved_vocabulary(truth_json)
    indices = category_indices(vocabulary)
    _, truths = read_entries(Location.of(truth_json))
    predictions = {entry.image_id: entry for entry in read_entries(Location.of(predicted_json))[1]}
    for entry in truths:
        if entry.image_id not in predictions:
            raise DataError(f"there is no prediction for image {entry.image_id}", seen=f"{len(predictions)} images in {predicted_json}")
        guess = predictions[entry.image_id]
        try:
            truth = truth_of(entry, decode_ids(storage.read_bytes(truth_place / entry.png)), indices)
            prediction = prediction_of(guess, decode_ids(storage.read_bytes(predicted_place / guess.png)), indices)
            yield panoptic_score(truth, prediction, len(vocabulary))
        except DataError as error:
            raise DataError(f"image {entry.image_id}: {error}") from error


def saved_vocabulary(annotations: str | Path) -> Vocabulary:
    """The categories of a panoptic JSON file. Raises DataError when it lists none."""
    vocabulary, _ = read_entries(Location.of(annotations))
    if vocabulary is None:
        raise DataError("the ground truth lists no categories", seen=annotations, allowed="categories with id, name, isthing")
    return vocabulary


def score_semantic(truth_folder: str | Path, predicted_folder: str | Path, num_classes: int, ignore: int) -> Iterator[SemanticScore]:
    """Score saved label maps, image by image of the ground truth; start the sum from `SemanticScore.zero`.

    A prediction belongs to the ground truth of the same path below its folder, or else the same name in any folder; endings and the suffixes of
    Cityscapes do not count. Of a Cityscapes folder only the ``labelTrainIds`` maps are ground truth.

    Raises:
        StorageError: a folder is missing or a file cannot be read.
        DataError: no ground truth, a map without its prediction, or one that cannot be compared; the message names the file.
    """
    truths = _label_maps(_folder(truth_folder))
    predictions = _label_maps(_folder(predicted_folder))
    by_name: dict[str, list[Location]] = {}
    for key, item in predictions.items():
        by_name.setdefault(key.rpartition("/")[2], []).append(item)
    if not truths:
        raise DataError("there are no label maps", seen=truth_folder, allowed=f"files ending {', '.join(ENDINGS)}, in folders at any depth")
    for key, truth in truths.items():
        found = [predictions[key]] if key in predictions else by_name.get(key.rpartition("/")[2], [])
        if len(found) != 1:
            seen = f"{len(found)} of this name in {predicted_folder}"
            raise DataError(f"ground truth {key} needs one prediction", seen=seen, allowed=f"one file {key}{'|'.join(ENDINGS)}")
        try:
            yield semantic_score(decode_labels(storage.read_bytes(truth)), decode_labels(storage.read_bytes(found[0])), num_classes, ignore)
        except DataError as error:
            raise DataError(f"{key}: {error}") from error


def _folder(path: str | Path) -> Location:
    location = Location.of(path)
    if not storage.exists(location):
        raise MissingFileError("there is no such folder", seen=location.uri)
    return location


def _label_maps(folder: Location) -> dict[str, Location]:
    """The label maps below a folder by their path there without ending."""
    files = storage.list_files(folder, ENDINGS, recursive=True)
    cityscapes = [item for item in files if _stem(item.uri).endswith(CITYSCAPES_LABELS)]
    keys = {item: _stem(item.uri.removeprefix(folder.uri + "/")) for item in cityscapes or files}
    return {key.removesuffix(CITYSCAPES_LABELS).removesuffix(CITYSCAPES_IMAGE): item for item, key in keys.items()}


def _stem(path: str) -> str:
    return path.rpartition(".")[0]
