"""Checkpoints: a folder of safetensors and JSON, written whole or not at all.

``model.safetensors`` holds a method's own weights, ``optimizer.safetensors`` what the optimizer remembers of them, and ``checkpoint.json``, written
last, says what they are: the configuration of the method, the step, metrics. A folder without ``checkpoint.json`` is not a checkpoint.

A sharded run (parallel=fsdp) writes what its optimizer remembers with torch.distributed.checkpoint instead: ``.metadata`` and, of each process, a
``*.distcp`` file. Any number of processes reads them again, each what it needs. The weights are whole in either case.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.errors import CheckpointError, StorageError
from uniovseg.parallel import like_parameter, load_shards, shard_names
from uniovseg.storage import Location

SHIPPED = {"shapes": "weights/shapes"}
"""Checkpoints that are package data, by name."""

REGISTERED = "models:/"
"""How the URI of one in MLflow's registry begins; `uniovseg.runtime.registry` opens those."""

MANIFEST, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.safetensors"

SHARDED = ".metadata"
"""What torch.distributed.checkpoint writes last, beside the processes' ``*.distcp``."""


class CheckpointInfo(Config):
    """What a checkpoint says of itself."""

    format: int = Field(1, description="version of this layout")
    step: int = Field(..., ge=0, description="optimizer steps taken")
    method: dict[str, Any] = Field(..., description="the method's configuration, with its name")
    config: dict[str, Any] = Field({}, description="the run's whole configuration; empty for an imported checkpoint")
    metrics: dict[str, float] = Field({}, description="of the validation at this step; empty where there was none")
    workers: int = Field(1, ge=1, description="processes that trained together when it was written")
    layout: str | None = Field(
        None, description="`ShardSet.layout` of the training set, which the order of the samples follows from; null: not known"
    )
    source: str = Field("training", description="where the weights come from")
    clip_digest: str | None = Field(
        None, description="sha256 of the file of the frozen CLIP's weights; null where a name or this checkpoint holds them"
    )


def save(folder: Path, info: CheckpointInfo, state: dict[str, Tensor], optimizer: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint into `folder` (made if needed), the manifest last. Raises StorageError or OSError when the disk does not take it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / MODEL)
        if optimizer is not None:
            save_file({name: value.cpu().contiguous() for name, value in optimizer.items()}, folder / OPTIMIZER)
    except SafetensorError as error:
        raise StorageError("the checkpoint cannot be written", seen=f"{folder}: {error}") from error
    storage.write_bytes(storage.Location.of(folder / MANIFEST), info.model_dump_json(indent=2).encode())


def located(uri: str) -> str:
    """The URI of a checkpoint as processes with another working directory find it: names in `SHIPPED` and registered ones stay as they are."""
    return uri if uri in SHIPPED or uri.startswith(REGISTERED) else Location.of(uri).uri


@contextmanager
def opened(uri: str | Path) -> Iterator[Path]:
    """A checkpoint as a local folder: a path, a URI, or the name of one in `SHIPPED`."""
    if str(uri) in SHIPPED:
        with resources.as_file(resources.files("uniovseg") / SHIPPED[str(uri)]) as folder:
            yield folder
        return
    with storage.local_copy(str(uri)) as folder:
        yield folder


def read_info(folder: Path) -> CheckpointInfo:
    """The manifest of a checkpoint folder. Raises CheckpointError when there is none or it cannot be understood."""
    try:
        return CheckpointInfo.model_validate_json((folder / MANIFEST).read_text())
    except OSError as error:
        raise CheckpointError("no checkpoint here", seen=folder, allowed=f"a folder with {MANIFEST}, {MODEL}") from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise CheckpointError("the checkpoint's manifest cannot be read", seen=folder / MANIFEST, fix="it may be of another version") from error


def read_weights(folder: Path, name: str = MODEL) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint folder, on the CPU."""
    try:
        tensors: dict[str, Tensor] = load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("the checkpoint's weights cannot be read", seen=folder / name, fix=str(error)) from error
    return tensors


def load_weights(module: nn.Module, state: dict[str, Tensor], expected: set[str]) -> None:
    """Load `state` into `module`. Every name of `expected` must be there and nothing else, each of the right shape.

    Raises:
        CheckpointError: names the first missing and left-over tensors, or the first wrong shape.
    """
    missing, left_over = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or left_over:
        raise CheckpointError(
            "the checkpoint does not fit the model",
            seen=f"{len(missing)} missing {missing[:3]}, {len(left_over)} left over {left_over[:3]}",
            fix="was it made with another configuration of the model?",
        )
    own = module.state_dict()
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise CheckpointError(f"{name} has another shape in the checkpoint", seen=tuple(value.shape), allowed=tuple(own[name].shape))
    module.load_state_dict(state, strict=False)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """What the optimizer remembers, flat: ``{kind}/{parameter name}`` to tensor."""
    flat: dict[str, Tensor] = {}
    for parameter, memory in optimizer.state.items():
        for kind, value in memory.items():
            flat[f"{kind}/{names[cast(nn.Parameter, parameter)]}"] = torch.as_tensor(value).detach()
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], folder: Path) -> None:
    """Give the optimizer back what a checkpoint holds of `optimizer_tensors`, in whichever form it was written, sharded as the parameters are.

    Raises:
        CheckpointError: a parameter is unknown.
    """
    parameters = {name: parameter for parameter, name in names.items()}

    def parameter_of(key: str) -> nn.Parameter:
        name = key.partition("/")[2]
        if name not in parameters:
            raise CheckpointError("the optimizer's state does not fit the model", seen=name)
        return parameters[name]

    if (folder / SHARDED).exists():
        flat = {
            key: torch.zeros(()) if key.startswith("step/") else torch.zeros_like(parameter_of(key), requires_grad=False)
            for key in shard_names(folder)
        }
        load_shards(folder, flat)
    else:
        flat = {
            key: value if key.startswith("step/") else like_parameter(value, parameter_of(key))
            for key, value in read_weights(folder, OPTIMIZER).items()
        }
    for key, value in flat.items():
        optimizer.state[parameter_of(key)][key.partition("/")[0]] = value
