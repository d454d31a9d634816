"""The paper's tables on the paper's data sets: each row by the evaluation job that `jobs/evaluate.py` runs, where its data and weights are there."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from uniovseg.config import Config
from uniovseg.data.benchmarks import open_benchmark
from uniovseg.data.promptable_sets import PROMPTABLE_SETS, find_promptable_set
from uniovseg.errors import UniOVSegError
from uniovseg.evaluation.mask_classification import MaskClassificationConfig, subsets
from uniovseg.evaluation.source import ROOT_VARIABLE, root_of
from uniovseg.models.clip import ClipConfig
from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job
from uniovseg.runtime.evaluate_words import (
    MaskClassificationJobConfig,
    WordsJobConfig,
    evaluate_panoptic_job,
    evaluate_semantic_job,
    mask_classification_job,
)
from uniovseg.runtime.pool import THREADS, PoolConfig
from uniovseg.runtime.reproduce.paper import OURS, paper_datasets
from uniovseg.runtime.reproduce.rows import ALSO, Row, rows_of

ABLATION = ("baseline", "nltk", "refine_nltk", "refine_llm", "multi_scale")
"""The rows of table 3: the frozen CLIP; entities by NLTK; captions refined first; entities by a language model; several scales."""

NO_CHECKPOINT = (
    "no weights: give a checkpoint of stage 2 (jobs/train.py --config jobs/configs/stage2.yaml), or of the release "
    "(python -m uniovseg import-release stage1.pth), as "
)


class BenchmarkTablesConfig(Config):
    """Data and weights of the paper's tables."""

    root: str | None = Field(None, description=f"folder that the data sets lie below; null: {ROOT_VARIABLE}, else datasets")
    limit: int | None = Field(None, ge=1, description="images taken from the start of each set; null: all")
    checkpoint: str | None = Field(None, description="the model of tables 1, 2 and promptable, a checkpoint folder or URI; null: they lack weights")
    ablation: dict[str, str] = Field({}, description=f"table 3: a checkpoint for each of {', '.join(ABLATION)}")
    method: dict[str, Any] = Field({}, description="settings of the method that differ from the checkpoint's and the benchmark's, as method.size=896")
    clip: ClipConfig = Field(ClipConfig(name="convnext_large_d_320", weights="laion2b_s29b_b131k_ft_soup"), description="table 4: the frozen CLIP")
    masks: MaskClassificationConfig = Field(MaskClassificationConfig(), description="table 4: sizes and templates")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description=THREADS)
    pool: PoolConfig = Field(PoolConfig(), description="actors")

    @field_validator("ablation")
    @classmethod
    def _rows(cls, value: dict[str, str]) -> dict[str, str]:
        if strange := set(value) - set(ABLATION):
            raise ValueError(f"no such row: {', '.join(sorted(strange))}; allowed: {', '.join(ABLATION)}")
        return value

    @property
    def place(self) -> str:
        """The root in force."""
        return root_of(self.root)


def benchmark_rows(table: str, config: BenchmarkTablesConfig, output: str) -> Iterator[list[Row]]:
    """The rows of a table, a data set (and method) at a time; what cannot run says in ``missing`` what it lacks.

    Args:
        table: 1, 2, 3, 4 or promptable.
        config: data and weights.
        output: folder of each evaluation's own report.
    """
    if table == "1":
        for dataset in paper_datasets(table):
            yield _named(table, OURS, dataset, "semantic", config, config.checkpoint, "checkpoint=FOLDER", output)
    elif table == "2":
        for dataset in paper_datasets(table):
            yield _named(table, OURS, dataset, "panoptic", config, config.checkpoint, "checkpoint=FOLDER", output)
    elif table == "3":
        for step in ABLATION:
            for dataset in paper_datasets(table, step):
                task = "panoptic" if dataset == "coco_panoptic" else "semantic"
                yield _named(table, step, dataset, task, config, config.ablation.get(step), f"ablation.{step}=FOLDER", output)
    elif table == "4":
        for dataset in ("ade20k_panoptic", "coco_panoptic"):
            yield _mask_classification(dataset, config, output)
    else:
        for dataset in PROMPTABLE_SETS:
            yield _promptable(dataset, config, output)


def _named(
    table: str, method: str, dataset: str, task: str, config: BenchmarkTablesConfig, checkpoint: str | None, setting: str, output: str
) -> list[Row]:
    metrics = ("pq", "sq", "rq") if task == "panoptic" else ("miou",)
    if table == "3":
        metrics = metrics[:1]

    def evaluate() -> Mapping[str, float | None]:
        assert checkpoint is not None
        job = WordsJobConfig(benchmark=dataset, output=f"{output}/{method}/{dataset}", checkpoint=checkpoint, method=config.method, **_shared(config))
        if task == "semantic":
            return {"miou": evaluate_semantic_job(job)["semantic"]["miou"]}
        figures = evaluate_panoptic_job(job)["panoptic"]["All"]
        return {name: figures[name] for name in metrics}

    lacks = _lacks(lambda: open_benchmark(dataset, config.place), None if checkpoint else NO_CHECKPOINT + setting)
    figures, missing = _figures(metrics, evaluate, lacks)
    return rows_of(table, method, dataset, figures, missing)


def _mask_classification(dataset: str, config: BenchmarkTablesConfig, output: str) -> list[Row]:
    names = ["+".join(map(str, chosen)) for chosen in subsets(config.masks.sizes)]

    def evaluate() -> Mapping[str, float | None]:
        job = MaskClassificationJobConfig(
            benchmark=dataset, output=f"{output}/mask_classification/{dataset}", clip=config.clip, masks=config.masks, **_shared(config)
        )
        found = mask_classification_job(job)["mask_classification"]["subsets"]
        return {f"{name} {metric}": found[name][metric] for name in names for metric in ("accuracy", "seconds")}

    both = [f"{name} {metric}" for name in names for metric in ("accuracy", "seconds")]
    figures, missing = _figures(both, evaluate, _lacks(lambda: open_benchmark(dataset, config.place), None))
    return [
        row
        for name in names
        for row in rows_of("4", name, dataset, {metric: figures[f"{name} {metric}"] for metric in ("accuracy", "seconds")}, missing)
    ]


def _promptable(dataset: str, config: BenchmarkTablesConfig, output: str) -> list[Row]:
    def evaluate() -> Mapping[str, float | None]:
        assert config.checkpoint is not None
        job = PromptableJobConfig(checkpoint=config.checkpoint, benchmark=dataset, output=f"{output}/promptable/{dataset}", **_shared(config))
        found = evaluate_promptable_job(job)["promptable"]
        return {name: found[name] for name in ("point_iou", "box_iou")}

    no_weights = None if config.checkpoint else NO_CHECKPOINT + "checkpoint=FOLDER"
    figures, missing = _figures(("point_iou", "box_iou"), evaluate, _lacks(lambda: find_promptable_set(dataset, config.place), no_weights))
    return rows_of("promptable", OURS, dataset, figures, missing)


def _shared(config: BenchmarkTablesConfig) -> dict[str, Any]:
    return {"root": config.place, "limit": config.limit, "device": config.device, "threads": config.threads, "pool": config.pool}


def _lacks(find: Callable[[], object], no_weights: str | None) -> list[str]:
    """What a row lacks: its data, its weights, both, or nothing."""
    lacks = [no_weights] if no_weights else []
    try:
        find()
    except UniOVSegError as error:
        lacks.insert(0, str(error))
    return lacks


def _figures(
    metrics: tuple[str, ...] | list[str], evaluate: Callable[[], Mapping[str, float | None]], lacks: list[str]
) -> tuple[Mapping[str, float | None], str]:
    """The figures, or None for each and why; an evaluation that fails is a row that fails, and the others go on."""
    nothing: dict[str, float | None] = dict.fromkeys(metrics)
    if lacks:
        return nothing, ALSO.join(lacks)
    try:
        return evaluate(), ""
    except UniOVSegError as error:
        return nothing, str(error)
