"""One training step over several processes: replicated (DDP) or sharded (FSDP2), and what a checkpoint needs of either.

Replicated, every process holds all weights and the gradients are averaged. Sharded, every process holds a slice of each weight, of its gradient and of
what the optimizer remembers; a block's whole weights are there only while the block computes. Both take the same steps.

What torch needs for sharding is imported where it is used: it takes two seconds, which a process without shards need not spend.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uniovseg.errors import ConfigError, StorageError

Parallel = Literal["ddp", "fsdp"]

LARGE = 1_000_000
"""Parameters from which a block is gathered on its own; smaller ones come with what contains them."""


def blocks(module: nn.Module) -> list[nn.Module]:
    """The large members of module lists and sequences, at any depth, inner ones first. Their containers call them as modules, as sharding needs."""
    found = [
        member
        for container in module.modules()
        if isinstance(container, nn.ModuleList | nn.Sequential)
        for member in container
        if sum(parameter.numel() for parameter in member.parameters()) >= LARGE
    ]
    return list(dict.fromkeys(reversed(found)))


def distribute(step: nn.Module, parallel: Parallel, device: torch.device) -> nn.Module:
    """`step` over the processes that torch.distributed joins; sharding replaces its parameters, in place.

    Raises:
        ConfigError: the method trains a parameter without dimensions, which cannot be sharded.
    """
    if parallel == "ddp":
        return DistributedDataParallel(step, device_ids=[device] if device.type == "cuda" else None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = {name: parameter for name, parameter in step.named_parameters() if parameter.ndim == 0}
    if trained := [name for name, parameter in scalars.items() if parameter.requires_grad]:
        raise ConfigError("a trained parameter without dimensions cannot be sharded", seen=trained[0], fix="train with parallel=ddp")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    unsharded = set(scalars.values())
    for block in blocks(step):
        fully_shard(block, mesh=mesh, ignored_params=unsharded)
    return cast(nn.Module, fully_shard(step, mesh=mesh, ignored_params=unsharded))


def accumulating(step: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a micro-batch: gradients meet those of the other processes after the last one of a step, and only then."""
    if hasattr(step, "set_requires_gradient_sync"):  # sharded
        cast(Any, step).set_requires_gradient_sync(last)
    if isinstance(step, DistributedDataParallel) and not last:
        return cast(AbstractContextManager[None], step.no_sync())
    return contextlib.nullcontext()


def sum_over_ranks(value: Tensor) -> Tensor:
    """`value` summed over the processes that torch.distributed joins; as it is where there is one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def largest_over_ranks(numbers: Sequence[int]) -> list[int]:
    """Of each number the largest of all processes' that torch.distributed joins; as they are where there is one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [int(number) for number in numbers]
    values = torch.tensor([int(number) for number in numbers], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(value) for value in values.tolist()]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a slice of the tensor only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, for which every process must call this; any other as it is."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor


def whole_state(state: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """`state` with every tensor gathered, on the CPU. Every process must call this; those that do not `keep` it get an empty dict."""

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, value in state.items():
            tensor = whole(value.detach())
            if keep:
                yield name, tensor.cpu()

    return dict(gathered())


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor on the parameter's device, and sharded as the parameter is."""
    value = value.to(parameter.device, parameter.dtype)
    if not is_sharded(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    of: Any = parameter
    return cast(Tensor, distribute_tensor(value, of.device_mesh, of.placements))


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write this process's part of `tensors` with torch.distributed.checkpoint, which makes the folder; every process must call this, come what may.

    Raises:
        StorageError: some process, not necessarily this one, cannot write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _alone_is_fine():
            save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise StorageError("the optimizer's state cannot be written", seen=" ".join(str(error).split())[:300]) from error


def shard_names(folder: Path) -> list[str]:
    """Names of the tensors that `save_shards` has written."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return list(FileSystemReader(folder).read_metadata().state_dict_metadata)


def load_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, whole or sharded in any way, with what `save_shards` of any number of processes has written."""
    from torch.distributed.checkpoint.state_dict_loader import load

    with _alone_is_fine():
        load(tensors, checkpoint_id=folder)


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Without torch's warning that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
