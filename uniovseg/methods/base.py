"""The contract of a method: all that the platform knows about one. It never asks which one it is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, Self, TypedDict, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from uniovseg.config import Config
from uniovseg.records import Batch, Prediction, StepOutput, Vocabulary

BatchT = TypeVar("BatchT", bound=Batch)


class OptimConfig(Config):
    """AdamW and its schedule (method: AdamW 1e-4, decay 0.05 but 0 for norms and embeddings, clip 1.0, steps down at 85 % and 95 %)."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay of matrices; norms, biases and embeddings have none")
    clip_grad_norm: float = Field(1.0, gt=0, description="largest L2 norm of the whole gradient")
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up")
    warmup_factor: float = Field(1.0, gt=0, le=1, description="learning rate at step 0 as a fraction of the peak")
    schedule: Literal["multi_step", "cosine"] = Field("multi_step", description="multi_step: times gamma at each milestone; cosine: down to 0")
    milestones: tuple[float, ...] = Field((0.85, 0.95), description="multi_step: where the rate drops, fractions of the run")
    gamma: float = Field(0.1, gt=0, le=1, description="multi_step: factor of each drop")

    @model_validator(mode="after")
    def _fractions(self) -> Self:
        if not all(0 <= milestone <= 1 for milestone in self.milestones):
            raise ValueError(f"milestones must be fractions of the run, from 0 to 1, not {list(self.milestones)}")
        return self


class ParamGroup(TypedDict):
    """Parameters that share a learning rate and a weight decay, in torch.optim's own form."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class Method(nn.Module, ABC):
    """Anything that segments images.

    `frozen` names the child modules that never train: they get no gradient, stay in evaluation mode, and are left out of checkpoints
    (each is rebuilt from its own configuration).
    """

    frozen: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def predict(self, images: Sequence[NDArray[np.uint8]], vocabulary: Vocabulary | None = None) -> list[Prediction]:
        """Segment RGB images [H, W, 3] of any size, into the classes of a vocabulary where one is given."""

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers that are this method's own: everything outside `frozen` (what a checkpoint holds)."""
        prefixes = tuple(f"{name}." for name in self.frozen)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(prefixes or ("\0",))}

    def train(self, mode: bool = True) -> "Method":
        """Set training mode everywhere but in the frozen modules; returns self."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the method's weights are."""
        return next(self.parameters()).device


class TrainableMethod(Method, Generic[BatchT]):
    """A method with a training step."""

    batch_type: ClassVar[type]
    starts_fresh: ClassVar[tuple[str, ...]] = ()
    """Child modules that a run begins with when it is initialised from a checkpoint of another method, which does not have them."""

    @abstractmethod
    def training_step(self, batch: BatchT) -> StepOutput:
        """Loss and metrics of one (micro-)batch that is on the method's device."""

    def param_groups(self, optim: OptimConfig) -> list[ParamGroup]:
        """Trainable parameters by weight decay: matrices decay; norms, biases and embeddings do not.

        An embedding is what an ``nn.Embedding`` holds, and a parameter that is no layer's weight, such as a learned token.
        """
        embeddings = {id(p) for module in self.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        trainable = {name: p for name, p in self.named_parameters() if p.requires_grad}
        matrices = {name for name, p in trainable.items() if p.ndim > 1 and name.endswith("weight") and id(p) not in embeddings}
        decayed = [p for name, p in trainable.items() if name in matrices]
        others = [p for name, p in trainable.items() if name not in matrices]
        groups = [ParamGroup(params=decayed, lr=optim.lr, weight_decay=optim.weight_decay), ParamGroup(params=others, lr=optim.lr, weight_decay=0.0)]
        return [group for group in groups if group["params"]]

    def after_step(self, step: int) -> None:
        """Called after each optimizer step; nothing by default."""


def mean_over_ranks(count: int, device: torch.device) -> float:
    """A count averaged over the ranks of torch.distributed, counting one in all at least: what losses over matched pairs are divided by.

    Divided so, and averaged over the ranks, a loss is that of the whole batch, however many ranks share it.
    """
    total, ranks = float(count), 1
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sums = torch.tensor(total, device=device)
        dist.all_reduce(sums)
        total, ranks = float(sums), dist.get_world_size()
    return max(total, 1.0) / ranks
