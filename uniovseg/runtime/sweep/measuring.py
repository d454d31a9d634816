"""From a matching job, or a labelled set, to the matrices that scale sets are scored by: the one expensive step of a scale sweep."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from uniovseg.data import pairs
from uniovseg.data.benchmarks import Item, LabelledSet, read_image
from uniovseg.data.shapes import CLASS_NAMES, MIN_MASK_AREA, TEXT_STREAM, Scene, draw_scene, encode_image, scene_rng
from uniovseg.data.shards import ShardSet
from uniovseg.errors import DataError
from uniovseg.evaluation.mask_classification import region_embeddings
from uniovseg.evaluation.source import open_source
from uniovseg.evaluation.true_masks import truth_masks
from uniovseg.mask_text_matching import FloatArray
from uniovseg.models.text_classifier import build_text_classifier, template_set
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImagePairs
from uniovseg.runtime.match import MatchConfig, match
from uniovseg.runtime.pool import over_items
from uniovseg.runtime.registry import with_files
from uniovseg.runtime.sweep.config import LabelledTruth, ScalesTask, ShapesTruth
from uniovseg.runtime.sweep.scale_sets import Matrices
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location
from uniovseg.training import pick_device

SAME = 0.5
"""IoU from which a mask shows an object."""

Measured = tuple[FloatArray, NDArray[np.bool_], int]
"""Of one image: cosines [S, Q, T], what is right [Q, T], and how many answers are wanted."""


def measure(task: ScalesTask, base: MatchConfig, output: Location) -> Matrices:
    """Match, or classify, with all sizes of the task. What was matched before is not matched again.

    Args:
        task: the sizes and the truth.
        base: the matching job; its output, sizes and rules are not used.
        output: folder of the sweep; pairs are written to ``pairs/``.
    """
    base = with_files(base.model_copy(update={"output": (output / "pairs").uri}))
    regions = base.regions.model_copy(update={"sizes": task.sizes})
    if isinstance(task.truth, LabelledTruth):
        dataset = open_source(task.truth)
        build = partial(_classifier, base.model_copy(update={"regions": regions}), replace(dataset, items=()))
        found = track(over_items(base.pool, build, dataset.items), f"measuring masks of {dataset.name}", total=len(dataset.items))
        return _collect("classes", task.sizes, _logit_scale(base), found)
    raw = base.pairing.matching.model_copy(update={"cost": "raw", "confidence": "all"})
    job = base.model_copy(update={"regions": regions, "pairing": base.pairing.model_copy(update={"matching": raw})})
    match(job)
    shards = ShardSet(job.output)
    records = track(shards.read(pairs.to_record), "comparing with the truth", total=shards.manifest.samples)
    return _collect("pairs", task.sizes, _logit_scale(base), (measured_pairs(task.truth, record) for record in records))


def _collect(kind: str, sizes: tuple[int, ...], logit_scale: float, images: Iterable[Measured]) -> Matrices:
    found = list(images)
    if not found:
        raise DataError("there is no image to score scale sets by")
    return Matrices(
        kind="pairs" if kind == "pairs" else "classes",
        sizes=sizes,
        logit_scale=logit_scale,
        cosines=[cosines for cosines, _, _ in found],
        right=[right for _, right, _ in found],
        wanted=np.array([wanted for _, _, wanted in found], np.int64),
    )


def _logit_scale(base: MatchConfig) -> float:
    return float(Segmenter.load(base.checkpoint, "cpu").method.clip.logit_scale)


def measured_pairs(truth: ShapesTruth, record: ImagePairs) -> Measured:
    """An image's cosines, from costs of kind ``raw``, and its scene's truth.

    Raises:
        DataError: the image is not of that shapes world.
    """
    number = record.key.removeprefix("text_")
    scene = _scene(truth, int(number)) if number.isdecimal() and record.key.startswith("text_") else None
    if scene is None or encode_image(scene.image, truth.scene.jpeg_quality) != record.image:
        raise DataError(
            "the image is not of the shapes world that the truth is of", seen=record.key, allowed=f"the image-text set of seed {truth.seed}",
            fix="set task.truth.seed and task.truth.scene as the set was made with",
        )  # fmt: skip
    right, wanted = named_masks(scene, RunLengthMasks.from_counts(record.counts, (record.height, record.width)), record.entities)
    return 1 - record.costs, right, wanted


def _scene(truth: ShapesTruth, number: int) -> Scene:
    return draw_scene(truth.scene, scene_rng(truth.seed, TEXT_STREAM, number - 1), held_out=False)


def named_masks(scene: Scene, masks: RunLengthMasks, entities: tuple[str, ...]) -> tuple[NDArray[np.bool_], int]:
    """Which of Q masks shows something that each of T entities names, [Q, T] bool, and how many entities name something in the scene.

    Something: an object or a ground of at least `MIN_MASK_AREA` pixels; a mask shows it from an IoU of `SAME`.
    """
    seen = [(item.class_index, item.mask) for item in scene.objects] + list(scene.grounds)
    seen = [(index, mask) for index, mask in seen if mask.sum() >= MIN_MASK_AREA]
    truth = RunLengthMasks.from_dense(torch.from_numpy(np.stack([mask for _, mask in seen])))
    names = np.array([CLASS_NAMES[index] for index, _ in seen])
    shown = masks.iou(truth).numpy() >= SAME  # [Q, objects]
    right = np.zeros((len(masks), len(entities)), np.bool_)
    for place, entity in enumerate(entities):
        right[:, place] = shown[:, names == entity].any(axis=1)
    return right, sum(entity in names for entity in entities)


def _classifier(config: MatchConfig, dataset: LabelledSet) -> Callable[[Item], Measured]:
    """A function from an item of a labelled set to its measurement, with the CLIP of the matching job's checkpoint."""
    if config.threads:
        torch.set_num_threads(config.threads)
    clip = Segmenter.load(config.checkpoint, str(pick_device(config.device))).method.clip
    classifier = build_text_classifier(clip, dataset.vocabulary, template_set(config.regions.templates))

    @torch.no_grad()
    def measured(item: Item) -> Measured:
        (sample,) = dataset.panoptic([item])
        masks, classes = truth_masks(sample.truth)
        right = classes[:, None] == np.arange(len(classifier))
        if not len(masks):
            return np.zeros((len(config.regions.sizes), 0, len(classifier)), np.float32), right, 0
        image = read_image(sample)
        logits = [classifier.logits(region_embeddings(clip, image, masks, size)[0]) for size in config.regions.sizes]
        return (torch.stack(logits) / classifier.logit_scale).cpu().numpy(), right, len(masks)

    return measured
