"""Every method by name: its configuration class and how it is built. The one place to add a method."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from uniovseg.config import Config
from uniovseg.methods.base import TrainableMethod
from uniovseg.methods.mask_generation import MaskGenerationConfig, build_mask_generation
from uniovseg.methods.mask_text_alignment import MaskTextAlignmentConfig, build_mask_text_alignment

MethodConfig = Annotated[MaskGenerationConfig | MaskTextAlignmentConfig, Field(discriminator="name")]
"""The type of a `method:` entry in a run's configuration."""


class MethodEntry(NamedTuple):
    """One method: its configuration class, and a function (configuration, seed) to the built method."""

    config_type: type[Config]
    build: Callable[[Any, int], TrainableMethod[Any]]


METHODS: dict[str, MethodEntry] = {
    "mask_generation": MethodEntry(MaskGenerationConfig, build_mask_generation),
    "mask_text_alignment": MethodEntry(MaskTextAlignmentConfig, build_mask_text_alignment),
}


def build_method(config: MethodConfig, seed: int) -> TrainableMethod[Any]:
    """The method that `config` describes, on the CPU, with random trainable weights drawn from `seed`."""
    return METHODS[config.name].build(config, seed)
