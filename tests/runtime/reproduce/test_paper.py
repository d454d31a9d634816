"""The paper's figures, a few of each table typed by hand."""

import pytest

from uniovseg.data.benchmarks import BENCHMARKS
from uniovseg.data.promptable_sets import PROMPTABLE_SETS
from uniovseg.runtime.reproduce.paper import OURS, paper_datasets, paper_figures, paper_value


@pytest.mark.parametrize(
    ("table", "method", "dataset", "metric", "version", "value"),
    [
        ("1", OURS, "ade20k_847", "miou", "v1", 0.135),
        ("1", OURS, "ade20k_847", "miou", "v2", 0.146),
        ("1", OURS, "pc_459", "miou", "v2", 0.195),
        ("1", OURS, "ade20k_150", "miou", "v1", 0.326),
        ("1", OURS, "ade20k_150", "miou", "v2", None),
        ("1", OURS, "cityscapes", "miou", "v1", 0.397),
        ("1", "SAM-CLIP", "voc_21", "miou", "v1", 0.606),
        ("1", "GroupViT", "voc_20", "miou", "v1", 0.797),
        ("1", "FC-CLIP", "pc_59", "miou", "v1", 0.584),
        ("1", "OVSegmentor", "ade20k_150", "miou", "v1", 0.056),
        ("2", OURS, "coco_panoptic", "pq", "v1", 0.180),
        ("2", OURS, "cityscapes_panoptic", "rq", "v1", 0.235),
        ("2", "U2Seg", "cityscapes_panoptic", "pq", "v1", 0.176),
        ("2", "OPSNet", "ade20k_panoptic", "sq", "v1", 0.524),
        ("3", "baseline", "coco_semantic", "miou", "v1", 0.332),
        ("3", "refine_nltk", "pc_59", "miou", "v1", 0.445),
        ("3", "multi_scale", "coco_panoptic", "pq", "v1", 0.180),
        ("4", "896+1024", "ade20k_panoptic", "accuracy", "v1", 0.513),
        ("4", "768+896+1024", "coco_panoptic", "accuracy", "v1", 0.584),
        ("4", "768", "coco_panoptic", "seconds", "v1", 0.10),
        ("4", "768+1024", "coco_panoptic", "accuracy", "v1", None),
        ("promptable", OURS, "pidray", "point_iou", "v1", 0.646),
        ("promptable", "SAM-L", "timberseg", "point_iou", "v1", 0.408),
        ("promptable", OURS, "ishape_antenna", "box_iou", "v1", 0.509),
        ("promptable", OURS, "plittersdorf", "point_iou", "v1", None),
        ("promptable", "SAM-L", "seginw_Salmon-Fillet", "box_iou", "v1", 0.623),
        ("promptable", OURS, "seginw_Watermelon", "point_iou", "v1", 0.934),
    ],
)
def test_figures_typed_by_hand(table: str, method: str, dataset: str, metric: str, version: str, value: float | None) -> None:
    assert paper_value(table, method, dataset, metric, version) == (None if value is None else pytest.approx(value, abs=1e-12))


def test_what_the_text_says_of_the_figures() -> None:
    def gain(dataset: str) -> float:
        ours, sam = (paper_value("promptable", method, dataset, "point_iou", "v1") for method in (OURS, "SAM-L"))
        assert ours is not None and sam is not None
        return ours - sam

    assert [round(gain(name), 3) for name in ("timberseg", "coco_instances", "pidray")] == [0.311, 0.201, 0.432]


def test_the_file_is_whole_and_without_doubles() -> None:
    figures = paper_figures()
    assert len({(item.table, item.method, item.version, item.dataset, item.metric) for item in figures}) == len(figures)
    assert paper_datasets("1") == ["ade20k_847", "pc_459", "ade20k_150", "pc_59", "voc_21", "voc_20", "cityscapes"]
    methods = {table: {item.method for item in figures if item.table == table} for table in "1234"}
    assert methods["3"] == {"baseline", "nltk", "refine_nltk", "refine_llm", "multi_scale"}
    assert [len(methods[table]) for table in "124"] == [19, 7, 6]
    assert sum(item.metric == "point_iou" and item.method == OURS for item in figures) == 15 + 24
    assert sum(item.metric == "box_iou" and item.method == OURS for item in figures) == 15 + 24
    for item in figures:
        assert item.dataset in (PROMPTABLE_SETS if item.table == "promptable" else [*BENCHMARKS, ""])
        assert 0 < item.value < 1
