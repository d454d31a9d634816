"""Two processes that train together under gloo, replicated and sharded, against one process alone; and what each does when one of them finds a NaN."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.test_training import Brightness, configured, sample_batch
from uniovseg import checkpoint, parallel
from uniovseg.checkpoint import MODEL, OPTIMIZER, SHARDED
from uniovseg.data.plan import micro_batch_places
from uniovseg.errors import ConfigError, TrainingError, TrainingStoppedError
from uniovseg.methods.base import TrainableMethod, mean_over_ranks
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.parallel import blocks
from uniovseg.pictures import Picture
from uniovseg.records import MaskBatch, StepOutput
from uniovseg.training import Ask, FolderRecorder, Request, TrainConfig, train


class Blocks(Brightness):
    """As `Brightness`, with two blocks in a list, one of which is called twice, and a frozen parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            inner = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
            self.head = nn.Sequential(Twice(inner), nn.LayerNorm(6), nn.Linear(6, 1))
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)


class Twice(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.layers
        found: torch.Tensor = first(torch.relu(second(torch.relu(first(x)))))
        return found


class Pairs(Blocks):
    """As `Blocks`, with a loss that is divided by the pairs of a batch, of which a sample has none to three."""

    def training_step(self, batch: MaskBatch) -> StepOutput:
        counts = torch.tensor([seed % 4 for seed in batch.seeds])
        error = self.head(self.eyes(batch.images.float().mean((2, 3)) / 255))[:, 0] + self.bias.weight[0]
        return StepOutput(loss=(counts * error.square()).sum() / mean_over_ranks(int(counts.sum()), error.device), metrics={})


def share(batch_size: int, accumulate: int, rank: int, world_size: int, taken: list[str]) -> Callable[[int], Iterator[MaskBatch]]:
    """A rank's micro-batches of the samples in their order; `taken` gets the keys."""

    def batches(start: int) -> Iterator[MaskBatch]:
        for step in range(start, 1000):
            for places in micro_batch_places(batch_size, rank, world_size, accumulate):
                batch = sample_batch([step * batch_size + place for place in places])
                taken.extend(batch.keys)
                yield batch

    return batches


class SharedFolder(FolderRecorder):
    """A run's folder that every process writes its part of a checkpoint to."""

    def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        if write is not None:
            write(self.folder / f"step_{step:07d}")


def stop_at(step: int) -> Ask:
    return lambda done: Request.STOP if done == step else Request.GO_ON


def run(
    folder: Path,
    config: TrainConfig,
    rank: int = 0,
    world_size: int = 1,
    resume: Path | None = None,
    ask: Ask | None = None,
    poison: str | None = None,
    kind: type[Blocks] = Blocks,
) -> list[str]:
    """Train `kind` into a folder; returns the keys that this rank has trained on."""
    folder.mkdir(exist_ok=True, parents=True)
    method, taken = kind(), list[str]()
    method.poison = poison
    validate = (lambda method: ({"val_sum": weight_sum(method)}, dict[str, Picture]())) if rank == 0 else None
    feed = share(config.batch_size, config.accumulate, rank, world_size, taken)
    train(config, method, feed, SharedFolder(folder, 9), validate=validate, resume=resume, rank=rank, world_size=world_size, ask=ask)
    return taken


def weight_sum(method: TrainableMethod[Any]) -> float:
    return float(sum(value.double().sum() for name, value in method.state().items()))


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in lines_of(folder) if "loss" in line}


def together(rank: int, folder: Path, config: TrainConfig) -> None:
    """What each of two processes does; what it finds is written beside the runs."""
    torch.set_num_threads(1)
    parallel.LARGE = 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    means = [mean_over_ranks(count, torch.device("cpu")) for count in (3 * rank, rank, 0)]
    (folder / f"means_{rank}.json").write_text(json.dumps(means))
    sharded = config.model_copy(update={"parallel": "fsdp"})
    two: Callable[..., list[str]] = partial(run, rank=rank, world_size=2)
    two(folder / "ddp", config)
    two(folder / "fsdp", sharded)
    two(folder / "fsdp_from_one", sharded, resume=folder / "one_sharded" / "step_0000003")
    two(folder / "fsdp_from_ddp", sharded, resume=folder / "ddp" / "step_0000003")
    two(folder / "fsdp_parts", sharded.model_copy(update={"accumulate": 2}))
    two(folder / "pairs", config.model_copy(update={"accumulate": 2}), kind=Pairs)
    for name, settings in (("bad_ddp", config), ("bad_fsdp", sharded)):
        with pytest.raises(TrainingError, match="not finite at step 2") as caught:
            two(folder / name, settings, poison="infinite, with finite gradients")  # in the share of the first process alone
        (folder / f"{name}_{rank}.txt").write_text(str(caught.value))
    with pytest.raises(TrainingStoppedError):
        two(folder / "stopped", sharded, ask=stop_at(4))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def config(tiny_config: MaskGenerationConfig) -> TrainConfig:
    return configured(tiny_config, validation={"every": 4, "shards": "given"})


@pytest.fixture(scope="module")
def done(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process, then those of two."""
    folder = tmp_path_factory.mktemp("parallel")
    run(folder / "alone", config)
    run(folder / "pairs_alone", config.model_copy(update={"accumulate": 2}), kind=Pairs)
    run(folder / "one_sharded", config.model_copy(update={"parallel": "fsdp"}))
    processes = [get_context("spawn").Process(target=together, args=(rank, folder, config)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


def same_losses(folder: Path, name: str, first: int) -> None:
    expected, found = losses(folder / "alone"), losses(folder / name)
    assert sorted(found) == list(range(first, 9))
    assert [found[step] for step in found] == pytest.approx([expected[step] for step in found], abs=1e-5)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp_parts"])
def test_two_processes_take_the_steps_of_one(done: Path, name: str) -> None:
    same_losses(done, name, 1)
    alone, found = (checkpoint.read_weights(done / folder / "step_0000008") for folder in ("alone", name))
    assert alone.keys() == found.keys()
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=0)
    validated = [line["val_sum"] for line in lines_of(done / name) if "val_sum" in line]
    assert validated == pytest.approx([line["val_sum"] for line in lines_of(done / "alone") if "val_sum" in line], abs=1e-4)
    assert {line["workers"] for line in lines_of(done / name) if "workers" in line} == {2.0}


def test_micro_batches_of_two_processes_are_those_of_one(done: Path) -> None:
    """Micro-batches differ in their pairs, so that other ones would give other losses and weights."""
    assert losses(done / "pairs") == pytest.approx(losses(done / "pairs_alone"), abs=1e-6)
    alone, found = (checkpoint.read_weights(done / folder / "step_0000008") for folder in ("pairs_alone", "pairs"))
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_a_sharded_checkpoint_is_whole_weights_and_a_part_of_each_process(done: Path) -> None:
    names = {path.name for path in (done / "fsdp" / "step_0000006").iterdir()}
    assert names == {checkpoint.MANIFEST, MODEL, SHARDED, "__0_0.distcp", "__1_0.distcp"}
    assert {path.name for path in (done / "ddp" / "step_0000006").iterdir()} == {checkpoint.MANIFEST, MODEL, OPTIMIZER}
    assert checkpoint.read_info(done / "fsdp" / "step_0000006").workers == 2


@pytest.mark.parametrize("name", ["fsdp_from_one", "fsdp_from_ddp"])
def test_two_processes_go_on_from_one_or_from_replicas(done: Path, name: str) -> None:
    same_losses(done, name, 4)


@pytest.mark.parametrize(("source", "how"), [("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")])
def test_one_process_goes_on_from_two(done: Path, tmp_path: Path, config: TrainConfig, source: str, how: str) -> None:
    run(tmp_path, config.model_copy(update={"parallel": how}), resume=done / source / "step_0000006")
    expected, found = losses(done / "alone"), losses(tmp_path)
    assert found == {step: pytest.approx(expected[step], abs=1e-5) for step in (7, 8)}


def test_few_pairs_are_divided_by_as_one_process_would(done: Path) -> None:
    """The sum over pairs, divided by this and averaged over two processes, is divided by 3, by 1, and by 1 where there are none."""
    assert [json.loads((done / f"means_{rank}.json").read_text()) for rank in range(2)] == [[1.5, 0.5, 0.5]] * 2
    assert [mean_over_ranks(count, torch.device("cpu")) for count in (3, 1, 0)] == [3.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["bad_ddp", "bad_fsdp"])
def test_all_processes_stop_at_what_one_finds_and_keep_their_samples(done: Path, name: str) -> None:
    for rank in range(2):
        kept = torch.load(done / name / "not_finite" / f"step_0000002_rank_{rank}.pt", weights_only=True)
        numbers = [8 + 2 * rank, 9 + 2 * rank]
        assert (kept["step"], kept["rank"], kept["keys"]) == (2, rank, [[f"sample_{number}" for number in numbers]])
        assert torch.equal(kept["batches"][0]["images"], sample_batch(numbers).images)
        assert kept["batches"][0]["seeds"] == numbers
        assert np.isfinite(kept["loss"]) == (rank == 1)
        message = (done / f"{name}_{rank}.txt").read_text()
        assert f"not_finite/step_0000002_rank_{rank}.pt', weights_only=True" in message and f"sample_{numbers[0]}" in message


def test_a_stopped_run_has_a_checkpoint_of_its_last_step(done: Path, tmp_path: Path, config: TrainConfig) -> None:
    assert sorted(path.name for path in (done / "stopped").glob("step_*")) == ["step_0000003", "step_0000004"]
    run(tmp_path, config, resume=done / "stopped" / "step_0000004")
    assert losses(tmp_path)[8] == pytest.approx(losses(done / "alone")[8], abs=1e-5)


def test_after_a_kill_and_another_number_of_processes_no_sample_is_repeated_or_skipped(
    tmp_path: Path, config: TrainConfig, shapes_shards: Path
) -> None:
    """Epochs of ten samples in steps of four, by three ranks, two, then one: each epoch takes each sample once, as if nobody had been killed."""
    from uniovseg.data.makers import MaskSampleMaker
    from uniovseg.training import local_batches

    config = config.model_copy(update={"data": config.data.model_copy(update={"train": str(shapes_shards), "window_groups": 2})})
    maker = MaskSampleMaker(config.data.view, config.data.sample, config.seed)

    def keys(start: int, stop: int, world_size: int) -> list[tuple[str, int]]:
        ranks = [list(islice(local_batches(config, maker, start, rank, world_size), stop - start)) for rank in range(world_size)]
        return [(key, seed) for step in zip(*ranks, strict=True) for part in step for key, seed in zip(part.keys, part.seeds, strict=True)]

    whole = keys(0, 10, 1)
    assert keys(0, 3, 3) + keys(3, 7, 2) + keys(7, 10, 1) == whole
    epochs = [[key for key, _ in whole[begin : begin + 10]] for begin in range(0, 40, 10)]
    assert all(len(set(epoch)) == 10 for epoch in epochs) and len(set(whole)) == 40  # the draws of each epoch are its own


def test_large_members_of_lists_are_blocks_inner_ones_first(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Blocks()
    monkeypatch.setattr(parallel, "LARGE", 42)  # what a linear layer of six holds
    twice = method.head[0]
    assert isinstance(twice, Twice)
    assert blocks(method) == [*reversed(list(twice.layers)), twice]
    monkeypatch.setattr(parallel, "LARGE", 85)
    assert blocks(method) == []


def test_a_trained_parameter_without_dimensions_is_refused() -> None:
    method = Blocks()
    method.scale.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"seen: scale; train with parallel=ddp"):
        parallel.distribute(method, "fsdp", torch.device("cpu"))
