"""Which labelled set is evaluated on, as a configuration says it."""

import os
from dataclasses import replace
from importlib import resources
from typing import Any, Self

import yaml
from pydantic import Field

from uniovseg.config import Config
from uniovseg.data.benchmarks import BENCHMARKS, LabelledSet, open_benchmark, open_panoptic
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError
from uniovseg.storage import Location

ROOT_VARIABLE = "DETECTRON2_DATASETS"


def benchmark_settings(benchmark: str | None) -> dict[str, Any]:
    """How a benchmark is tested, from ``benchmark_settings.yaml``: ``method`` and ``segmentation`` with the settings that it brings; empty for other sets."""
    settings = yaml.safe_load((resources.files("uniovseg") / "evaluation/benchmark_settings.yaml").read_text("utf-8"))
    return dict(settings.get(benchmark, {}))


def root_of(root: str | None) -> str:
    """The folder that benchmarks lie below: what is given, else the environment's, else ``datasets``."""
    return root or os.environ.get(ROOT_VARIABLE) or "datasets"


class SourceConfig(Config):
    """A labelled set: a benchmark by name, or any COCO panoptic file."""

    benchmark: str | None = Field(None, description=f"one of {', '.join(BENCHMARKS)}")
    root: str | None = Field(None, description=f"folder that benchmarks lie below; null: {ROOT_VARIABLE}, else datasets")
    annotations: str | None = Field(None, description="instead of a benchmark: a COCO panoptic JSON")
    images: str | None = Field(None, description="with annotations: folder of the images; null: images/ beside the JSON")
    panoptic: str | None = Field(None, description="with annotations: folder of the PNGs; null: beside the JSON, with its name")
    vocabulary: str | None = Field(
        None, description="words of the classes: a packaged name or a file, with the set's own ids; null: the set's own words"
    )
    limit: int | None = Field(None, ge=1, description="images taken from the start; null: all")

    def with_absolute_paths(self) -> Self:
        """The same set with the local paths made absolute: for processes with another working directory."""
        given = {key: value for key in ("root", "annotations", "images", "panoptic") if (value := getattr(self, key)) is not None}
        return self.model_copy(update={key: Location.of(value).uri for key, value in given.items()})


def open_source(config: SourceConfig) -> LabelledSet:
    """The labelled set that `config` names. Raises ConfigError when it names none or two, or a vocabulary whose ids are not the set's."""
    if (config.benchmark is None) == (config.annotations is None):
        seen = "both" if config.benchmark else "neither"
        raise ConfigError("give either benchmark or annotations", seen=seen, allowed=f"a benchmark is one of {', '.join(BENCHMARKS)}")
    vocabulary = load_vocabulary(config.vocabulary) if config.vocabulary else None
    if config.benchmark is not None:
        found = open_benchmark(config.benchmark, root_of(config.root))
    else:
        assert config.annotations is not None
        images = config.images or images_beside(config.annotations)
        found = open_panoptic(config.annotations, images, config.panoptic, vocabulary)
    if vocabulary is not None and [item.id for item in vocabulary.categories] != [item.id for item in found.vocabulary.categories]:
        raise ConfigError(
            "the vocabulary has other ids than the set", seen=config.vocabulary, allowed=f"the {len(found.vocabulary)} ids of {found.name}"
        )
    return replace(found, vocabulary=vocabulary or found.vocabulary, items=found.items[: config.limit])


def images_beside(annotations: str) -> str:
    """The folder ``images/`` beside a JSON file."""
    return f"{Location.of(annotations).uri.rpartition('/')[0]}/images"
