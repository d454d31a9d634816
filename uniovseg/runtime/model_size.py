"""How large a run's checkpoints are, found without weights: the method is built on torch's meta device, which holds shapes alone."""

import logging
from dataclasses import dataclass

import torch

from uniovseg.methods.base import Method
from uniovseg.methods.catalog import MethodConfig, build_method
from uniovseg.models.clip import CHECKPOINT


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes of a method.

    Attributes:
        trainable: parameters that train.
        weights_bytes: what a checkpoint's ``model.safetensors`` holds.
    """

    trainable: int
    weights_bytes: int

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients, fp32."""
        return 4 * self.trainable

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: the weights and AdamW's two moments."""
        return self.weights_bytes + 8 * self.trainable


def model_size(config: MethodConfig) -> ModelSize:
    """The sizes of the method that `config` describes. Raises ConfigError for a CLIP that open_clip does not know."""
    shapes_only = config.model_copy(update={"clip": config.clip.model_copy(update={"weights": CHECKPOINT})})
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip says that nothing was loaded, as we asked
    try:
        with torch.device("meta"):
            method = build_method(shapes_only, 0)
    finally:
        logging.disable(previous)
    state = method.state() if config.clip.weights == CHECKPOINT else Method.state(method)
    weights = sum(value.numel() * value.element_size() for value in state.values())
    return ModelSize(sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad), weights)
