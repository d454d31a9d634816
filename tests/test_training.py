"""The training loop on a tiny method: schedule, accumulation, resume, refusals, and the whole program on a tiny shard set."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import key_help
from uniovseg.config import validate as config_of
from uniovseg.data.benchmarks import open_benchmark
from uniovseg.data.shapes import SceneConfig, draw_scene, scene_rng
from uniovseg.data.shapes_sets import write_panoptic
from uniovseg.errors import CheckpointError, ConfigError, DeviceMemoryError, TrainingError
from uniovseg.evaluation.source import SourceConfig
from uniovseg.evaluation.words import evaluate_semantic
from uniovseg.methods.base import OptimConfig, TrainableMethod
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.metrics import SemanticScore
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pictures import Picture
from uniovseg.records import MaskBatch, Prediction, StepOutput, View, Vocabulary
from uniovseg.runtime.evaluate_words import WordsJobConfig
from uniovseg.segmenter import Segmenter
from uniovseg.training import FolderRecorder, TrainConfig, checkpoints, lr_factor, main, make_validation, train

VIEW = View(scale_xy=(1.0, 1.0), offset_xy=(0.0, 0.0), size=(4, 4), valid_xyxy=(0.0, 0.0, 4.0, 4.0))


class Brightness(TrainableMethod[MaskBatch]):
    """Learns each image's mean and a number drawn from its seed, through a frozen layer."""

    frozen = ("eyes",)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.eyes = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.9)).requires_grad_(False)
            self.head = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1))
            self.bias = nn.Embedding(2, 1)
        self.poison: str | None = None
        self.finished: list[int] = []

    def training_step(self, batch: MaskBatch) -> StepOutput:
        seen = self.eyes(batch.images.float().mean((2, 3)) / 255)
        draws = [torch.rand(1, generator=torch.Generator().manual_seed(seed)) for seed in batch.seeds]
        error = self.head(seen) + self.bias.weight[0] - torch.stack(draws)
        loss = error.square().mean()
        if self.poison == "nan" and "sample_9" in batch.keys:
            loss = loss * float("nan")
        if self.poison == "infinite, with finite gradients" and "sample_9" in batch.keys:
            loss = loss + float("inf")
        return StepOutput(loss=loss, metrics={"error": error.detach().abs().mean()})

    def predict(self, images: Sequence[NDArray[np.uint8]], vocabulary: Vocabulary | None = None) -> list[Prediction]:
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        self.finished.append(step)


def sample_batch(numbers: Sequence[int]) -> MaskBatch:
    """The samples of these numbers."""
    images = [torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)) for number in numbers]
    return MaskBatch(
        keys=tuple(f"sample_{number}" for number in numbers),
        images=torch.stack(images),
        views=(VIEW,) * len(numbers),
        masks=(RunLengthMasks.empty((4, 4)),) * len(numbers),
        boxes_xyxy=(torch.zeros(0, 4),) * len(numbers),
        seeds=tuple(numbers),
    )


def feed(batch_size: int, accumulate: int = 1) -> Callable[[int], Iterator[MaskBatch]]:
    """Samples in their order, `batch_size` a step, in micro-batches."""
    share = batch_size // accumulate

    def batches(start: int) -> Iterator[MaskBatch]:
        first = start * batch_size
        while True:
            yield sample_batch(range(first, first + share))
            first += share

    return batches


def configured(method: MaskGenerationConfig, **changes: Any) -> TrainConfig:
    """A run of 8 steps of 4 samples; `Brightness` stands in for the method."""
    values: dict[str, Any] = {
        "output": "out", "seed": 1, "steps": 8, "batch_size": 4, "device": "cpu", "method": method, "data": {"train": "shards"},
        "optim": {"lr": 0.05, "warmup_steps": 2, "warmup_factor": 0.5, "schedule": "cosine"}, "log_every": 1, "checkpoint_every": 3,
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_in(
    folder: Path,
    config: TrainConfig,
    method: TrainableMethod[Any],
    *,
    resume: Path | None = None,
    stop: int | None = None,
    layout: str | None = None,
) -> list[dict[str, float]]:
    """Train into a folder; `stop` ends the feed before that step, as a kill would."""
    folder.mkdir(exist_ok=True)

    def batches(start: int) -> Iterator[MaskBatch]:
        for number, batch in enumerate(feed(config.batch_size, config.accumulate)(start)):
            if stop is not None and start + number // config.accumulate >= stop:
                raise KeyboardInterrupt
            yield batch

    try:
        recorder = FolderRecorder(folder, config.keep_checkpoints, config.keep_metric)
        train(config, method, batches, recorder, resume=resume, layout=layout)
    except KeyboardInterrupt:
        assert stop is not None
    return lines_of(folder)


def weights(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_what_ranks_checkpoints_is_measured_at_their_steps(tiny_config: MaskGenerationConfig) -> None:
    def every(validation: int, checkpoint: int, metric: str = "val_box_iou", shards: str | None = "shards") -> None:
        configured(tiny_config, validation={"shards": shards, "every": validation}, checkpoint_every=checkpoint, keep_metric=metric)

    every(100, 50)
    every(50, 100)
    with pytest.raises(ValueError, match=r"of checkpoint_every \(50\) and validation.every \(75\) one must be a multiple of the other"):
        every(75, 50)
    with pytest.raises(ValueError, match="keep_metric=val_box_iou needs a validation: set validation.shards"):
        every(100, 50, shards=None)
    with pytest.raises(ValueError, match="keep_metric=val_miou needs a validation: set validation.words"):
        every(100, 50, metric="val_miou")
    with pytest.raises(ValueError, match="'val_point_iou', 'val_box_iou', 'val_box_fill_iou' or 'val_miou'"):
        every(100, 50, metric="val_boxiou")


def test_the_loop_learns_and_keeps_the_newest_checkpoints(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    method = Brightness()
    before = weights(method)
    lines = run_in(tmp_path, configured(tiny_config, steps=40, checkpoint_every=15), method)
    assert [line["step"] for line in lines] == list(range(1, 41))
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    assert all(line["images_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1 and line["error"] > 0 for line in lines)
    assert method.finished == list(range(40))
    assert [path.name for path in checkpoints(tmp_path)] == ["step_0000030", "step_0000040"]
    after = weights(method)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("eyes"))
    assert method.head.training
    assert not method.eyes.training  # a frozen part stays in evaluation mode: its dropout would show in the loss
    saved = checkpoint.read_weights(tmp_path / "step_0000040")
    assert saved.keys() == {name for name in before if not name.startswith("eyes")}
    assert all(torch.equal(value, after[name]) for name, value in saved.items())
    info = checkpoint.read_info(tmp_path / "step_0000040")
    assert (info.step, info.method["name"], info.config["batch_size"]) == (40, "mask_generation", 4)


def test_metrics_are_means_since_the_last_line(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    single = run_in(tmp_path / "single", configured(tiny_config, steps=7), Brightness())
    every = run_in(tmp_path / "every", configured(tiny_config, steps=7, log_every=3), Brightness())
    assert [line["step"] for line in every] == [3, 6, 7]
    for line, part in zip(every, (single[:3], single[3:6], single[6:]), strict=True):
        assert line["loss"] == pytest.approx(np.mean([item["loss"] for item in part]), rel=1e-5)


def test_a_resumed_run_goes_on_exactly(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    config = configured(tiny_config)
    whole = Brightness()
    expected = run_in(tmp_path / "whole", config, whole)
    run_in(tmp_path / "killed", config, Brightness(), stop=5)
    assert [path.name for path in checkpoints(tmp_path / "killed")] == ["step_0000003"]
    resumed = Brightness()
    with torch.no_grad():
        next(resumed.head.parameters()).zero_()  # what it starts with must not matter
    recorder = FolderRecorder(tmp_path / "killed", 2)
    recorder.rewind(3)
    found = run_in(tmp_path / "killed", config, resumed, resume=tmp_path / "killed" / "step_0000003")
    assert [line["step"] for line in found] == list(range(1, 9))
    for a, b in zip(found, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert (a["lr"], a["grad_norm"]) == pytest.approx((b["lr"], b["grad_norm"]), abs=1e-6)
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-6, rtol=0)


class JobConfig(TrainConfig):
    """A run on Ray, as far as a resume is concerned."""

    workers: int = Field(1, description="workers")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim": {"lr": 0.01}}, "seen: optim.lr"),
        ({"seed": 2}, "seen: seed;"),
        ({"steps": 9, "batch_size": 8}, "seen: batch_size, steps;"),
        ({"data": {"train": "others"}}, "seen: data.train;"),
        ({"data": {"train": "shards", "view": {"size": 64}}}, "seen: data.view.size;"),
    ],
)
def test_a_changed_configuration_is_refused(tmp_path: Path, tiny_config: MaskGenerationConfig, changes: dict[str, Any], named: str) -> None:
    run_in(tmp_path, configured(tiny_config), Brightness(), stop=4)
    with pytest.raises(CheckpointError, match="another configuration") as raised:
        run_in(tmp_path, configured(tiny_config, **changes), Brightness(), resume=tmp_path / "step_0000003")
    assert named in str(raised.value)


def test_a_changed_training_set_is_refused(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    run_in(tmp_path, configured(tiny_config), Brightness(), stop=4, layout="a")
    with pytest.raises(CheckpointError, match="training set.*layout b of shards; allowed: a;"):
        run_in(tmp_path, configured(tiny_config), Brightness(), resume=tmp_path / "step_0000003", layout="b")
    lines = run_in(tmp_path, configured(tiny_config), Brightness(), resume=tmp_path / "step_0000003", layout="a")
    assert lines[-1]["step"] == 8


def test_a_checkpoint_from_before_a_key_is_resumed_with_its_default(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    run_in(tmp_path, configured(tiny_config), Brightness(), stop=4)
    file = tmp_path / "step_0000003" / checkpoint.MANIFEST
    written = json.loads(file.read_text())
    del written["config"]["data"]["match"], written["config"]["data"]["online"], written["config"]["method"]["regions"]
    file.write_text(json.dumps(written))
    online = configured(tiny_config, data={"train": "shards", "match": "online"})
    with pytest.raises(CheckpointError, match=r"seen: data\.match;"):
        run_in(tmp_path, online, Brightness(), resume=tmp_path / "step_0000003")
    lines = run_in(tmp_path, configured(tiny_config), Brightness(), resume=tmp_path / "step_0000003")
    assert lines[-1]["step"] == 8


def test_what_a_resumed_run_may_change(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    run_in(tmp_path, JobConfig.model_validate(configured(tiny_config).model_dump() | {"workers": 4}), Brightness(), stop=4)
    changes = {"log_every": 2, "accumulate": 2, "threads": 1, "keep_checkpoints": 1, "output": "elsewhere", "data": {"train": "shards", "threads": 2}}
    again = JobConfig.model_validate(configured(tiny_config, **changes).model_dump() | {"workers": 2})
    threads = torch.get_num_threads()
    try:
        lines = run_in(tmp_path, again, Brightness(), resume=tmp_path / "step_0000003")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 6, 8]


@pytest.mark.parametrize("poison", ["nan", "infinite, with finite gradients"])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path: Path, tiny_config: MaskGenerationConfig, poison: str) -> None:
    reference = Brightness()
    run_in(tmp_path / "good", configured(tiny_config), reference, stop=2)
    method = Brightness()
    method.poison = poison
    with pytest.raises(TrainingError, match="not finite at step 2.*sample_8, sample_9"):
        run_in(tmp_path / "bad", configured(tiny_config), method)
    for name, value in method.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    assert method.finished == [0, 1]
    assert checkpoints(tmp_path / "bad") == []


@pytest.mark.parametrize(
    ("where", "said"),
    [("match", "step 0; .*raise accumulate"), ("optimizer", "step 0; .*raise accumulate"), ("validate", "validation after step 1; .*lower val")],
)
def test_too_little_memory_is_explained_wherever_it_runs_out(
    tmp_path: Path, tiny_config: MaskGenerationConfig, monkeypatch: pytest.MonkeyPatch, where: str, said: str
) -> None:
    def exhausted(*_: object, **__: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    if where == "optimizer":
        monkeypatch.setattr(torch.optim.AdamW, "step", exhausted)
    parts: dict[str, Any] = {where: exhausted} if where != "optimizer" else {}
    config = configured(tiny_config, validation={"every": 1})
    with pytest.raises(DeviceMemoryError, match=f"the device's memory does not hold (the )?{said}"):
        train(config, Brightness(), feed(4), FolderRecorder(tmp_path, 2), **parts)


def test_accumulation_equals_one_big_batch(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    whole, parts = Brightness(), Brightness()
    a = run_in(tmp_path / "whole", configured(tiny_config, batch_size=6), whole)
    b = run_in(tmp_path / "parts", configured(tiny_config, batch_size=6, accumulate=3), parts)
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-5, rtol=0)
    assert [line["loss"] for line in a] == pytest.approx([line["loss"] for line in b], abs=1e-5)


def test_gradients_are_clipped(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    """With SGD-like first steps hidden inside Adam, clipping shows in the second moment: it holds the clipped gradient."""
    method = Brightness()
    config = configured(tiny_config, steps=1, optim={"lr": 0.01, "clip_grad_norm": 1e-3, "warmup_steps": 0})
    (line,) = run_in(tmp_path, config, method)
    assert line["grad_norm"] > 0.1  # what is logged is the norm before
    moments = checkpoint.read_weights(tmp_path / "step_0000001", checkpoint.OPTIMIZER)
    first = torch.cat([value.flatten() for name, value in moments.items() if name.startswith("exp_avg/")])
    assert float(first.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # (1 - beta1) * clipped


def test_matrices_decay_and_the_rest_does_not() -> None:
    method = Brightness()
    decayed, others = method.param_groups(OptimConfig(weight_decay=0.3))
    assert [group["weight_decay"] for group in (decayed, others)] == [0.3, 0.0]
    assert {id(p) for p in decayed["params"]} == {id(method.head[0].weight), id(method.head[2].weight)}  # also the one of a single row
    trained = {id(p) for group in (decayed, others) for p in group["params"]}
    assert trained == {id(p) for name, p in method.named_parameters() if not name.startswith("eyes")}


def test_the_multi_step_schedule() -> None:
    optim = OptimConfig(warmup_steps=10, warmup_factor=0.1)
    factors = [lr_factor(optim, step, 1000) for step in (0, 5, 10, 849, 850, 949, 950, 999)]
    assert factors == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_schedule() -> None:
    optim = OptimConfig(schedule="cosine", warmup_steps=0)
    factors = [lr_factor(optim, step, 100) for step in (0, 25, 50, 100)]
    assert factors == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0], abs=1e-9)


def test_the_loop_follows_the_schedule(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    config = configured(tiny_config)
    lines = run_in(tmp_path, config, Brightness())
    assert [line["lr"] for line in lines] == pytest.approx([0.05 * lr_factor(config.optim, step, 8) for step in range(8)])


def test_validation_is_run_in_evaluation_mode_and_at_the_end(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    modes: list[bool] = []

    def validate(method: TrainableMethod[Any]) -> tuple[dict[str, float], dict[str, Picture]]:
        modes.append(method.training)
        return {"val_box_iou": len(modes) / 10}, {"found": np.zeros((4, 4, 3), np.uint8)}

    config = configured(tiny_config, steps=7, validation={"every": 3})
    method = Brightness()
    last = train(config, method, feed(4), FolderRecorder(tmp_path, 2), validate=validate)
    assert (last, modes, method.training) == ({"val_box_iou": 0.3}, [False] * 3, True)
    assert [(line["step"], line["val_box_iou"]) for line in lines_of(tmp_path) if "val_box_iou" in line] == [(3, 0.1), (6, 0.2), (7, 0.3)]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"found_000000{step}.png" for step in (3, 6, 7)]
    assert checkpoint.read_info(tmp_path / "step_0000007").metrics == {"val_box_iou": 0.3}
    assert make_validation(config) is None


def test_words_are_validated_as_evaluation_scores_them(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    scene = SceneConfig(size=96)
    write_panoptic((draw_scene(scene, scene_rng(0, 9, index), held_out=True) for index in range(3)), tmp_path / "evaluation", scene)
    words = {"benchmark": "shapes", "root": str(tmp_path), "limit": 2}
    config = configured(tiny_config, validation={"words": words}, keep_metric="val_miou", checkpoint_every=5000)
    validate = make_validation(config)
    method = Segmenter.load("shapes", "cpu", {"test_points_per_side": 6, "regions": {"sizes": [96], "templates": "simple"}}).method
    assert validate is not None and isinstance(method, TrainableMethod)
    metrics, pictures = validate(method)
    found = open_benchmark("shapes", str(tmp_path))
    results = evaluate_semantic(method, found.semantic(found.items[:2]), found.vocabulary, SegmentationConfig())
    expected = sum((item.score for item in results), SemanticScore.zero(len(found.vocabulary))).miou()
    assert expected > 0 and (metrics, pictures) == ({"val_miou": expected}, {})


def test_a_benchmark_is_validated_with_the_settings_that_it_brings(
    tmp_path: Path, tiny_config: MaskGenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = SourceConfig(benchmark="cityscapes", root=str(tmp_path))
    seen: list[tuple[Any, ...]] = []

    def score(method: Any, dataset: object, segmentation: SegmentationConfig) -> float:
        seen.append((method.config.size, method.config.test_points_per_side, method.config.regions.sizes, segmentation))
        return math.nan

    monkeypatch.setattr("uniovseg.training.open_source", lambda config: config)
    monkeypatch.setattr("uniovseg.training.mean_iou", score)
    validate = make_validation(configured(tiny_config, validation={"words": words.model_dump()}))
    method = Segmenter.load("shapes").method
    assert validate is not None and isinstance(method, TrainableMethod)
    assert validate(method) == ({}, {})  # not a number is no figure: a checkpoint could not be read with it
    job = WordsJobConfig(output="o", benchmark="cityscapes")
    assert seen == [(job.method["size"], job.method["test_points_per_side"], tuple(job.method["regions"]["sizes"]), job.segmentation)]
    assert method.config.size != seen[0][0]


def test_stage_two_is_not_sharded() -> None:
    values = {"output": "o", "data": {"train": "s"}, "method": {"name": "mask_text_alignment"}}
    with pytest.raises(ConfigError, match="parallel must be ddp for mask_text_alignment"):
        config_of(TrainConfig, values | {"parallel": "fsdp"})
    assert config_of(TrainConfig, values).parallel == "ddp"


def test_a_resumed_run_knows_the_last_validation(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    config = configured(tiny_config, steps=7, validation={"every": 3})
    recorder = FolderRecorder(tmp_path, 2)

    def validate(_: TrainableMethod[Any]) -> tuple[dict[str, float], dict[str, Picture]]:
        return {"val_box_iou": 0.25}, {}

    train(config, Brightness(), feed(4), recorder, validate=validate)
    assert train(config, Brightness(), feed(4), recorder, validate=validate, resume=tmp_path / "step_0000007") == {"val_box_iou": 0.25}
    assert train(config, Brightness(), feed(4), recorder, resume=tmp_path / "step_0000006") == {"val_box_iou": 0.25}
    assert checkpoint.read_info(tmp_path / "step_0000007").metrics == {}


def test_the_best_checkpoints_and_the_newest_are_kept(tmp_path: Path, tiny_config: MaskGenerationConfig) -> None:
    """Those between validations are for a resume: each goes when a newer one is there."""
    values = {2: 0.3, 4: 0.2, 6: 0.1}
    kept: list[list[int]] = []

    class Watched(FolderRecorder):
        def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
            super().checkpoint(step, write, metrics)
            assert metrics == ({"val_box_iou": values[step]} if step in values else {})
            kept.append([int(path.name.removeprefix("step_")) for path in checkpoints(tmp_path)])

    found = iter(values.values())
    config = configured(tiny_config, steps=6, checkpoint_every=1, validation={"shards": "shards", "every": 2}, keep_metric="val_box_iou")
    recorder = Watched(tmp_path, config.keep_checkpoints, config.keep_metric)
    train(config, Brightness(), feed(4), recorder, validate=lambda _: ({"val_box_iou": next(found)}, {}))
    assert kept == [[1], [1, 2], [2, 3], [2, 4], [2, 4, 5], [2, 4, 6]]


def test_speed_leaves_out_what_checkpoints_take(tmp_path: Path, tiny_config: MaskGenerationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("uniovseg.training.time.perf_counter", lambda: clock.now)

    def batches(start: int) -> Iterator[MaskBatch]:
        for batch in feed(4)(start):
            clock.now += 2.0
            yield batch

    class Slow(FolderRecorder):
        def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
            clock.now += 100.0

    train(configured(tiny_config, log_every=4, checkpoint_every=3), Brightness(), batches, Slow(tmp_path, 2))
    assert [(line["images_per_second"], line["data_wait_share"]) for line in lines_of(tmp_path)] == [(2.0, 1.0), (2.0, 1.0)]


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "step_0000002", CheckpointInfo(step=2, method={}), {})
    (tmp_path / "step_0000004").mkdir()
    assert checkpoints(tmp_path) == [tmp_path / "step_0000002"]


def test_rewind_drops_later_lines(tmp_path: Path) -> None:
    recorder = FolderRecorder(tmp_path, 2)
    recorder.rewind(0)  # nothing is there yet
    for step in (1, 2, 3):
        recorder.log(step, {"loss": 1.0 / step})
    recorder.rewind(2)
    recorder.log(3, {"loss": 7.0})
    assert [(line["step"], line["loss"]) for line in lines_of(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]


@pytest.fixture
def config_file(tmp_path: Path, shapes_shards: Path, tiny_config: MaskGenerationConfig) -> Path:
    """A run of four steps on the tiny shard set, with keys of Ray that are left aside."""
    values = {
        "output": str(tmp_path / "run"),
        "seed": 3,
        "steps": 4,
        "batch_size": 4,
        "accumulate": 2,
        "device": "cpu",
        "method": tiny_config.model_dump(mode="json"),
        "data": {"train": str(shapes_shards), "view": {"size": 64}, "window_groups": 2, "threads": 2},
        "validation": {"shards": str(shapes_shards), "images": 2, "points_per_side": 2, "every": 100},
        "log_every": 1,
        "checkpoint_every": 2,
        "workers": 2,
        "tracking": {"uri": None},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_program_trains_and_goes_on(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics.keys() == {"val_point_iou", "val_box_iou", "val_box_fill_iou"}
    assert 0.4 < metrics["val_box_fill_iou"] < 0.8
    whole = lines_of(tmp_path / "run")
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 4]
    assert all(math.isfinite(value) for line in whole for value in line.values())
    assert all(line["pairs"] > 0 and line["box_loss_mask"] > 0 for line in whole[:4])
    assert (tmp_path / "run" / "pictures" / "everything_0000004.png").stat().st_size > 1000

    (tmp_path / "run" / "step_0000004" / checkpoint.MANIFEST).unlink()  # as if it was killed while writing
    assert main(["--config", str(config_file)]) == 0
    again = lines_of(tmp_path / "run")
    assert [line["step"] for line in again] == [1, 2, 3, 4, 4]
    for a, b in zip(again, whole, strict=True):
        assert a.get("loss", 0.0) == pytest.approx(b.get("loss", 0.0), abs=1e-6)
    printed = capsys.readouterr().out
    assert json.loads(printed) == pytest.approx(metrics, abs=1e-6)
    assert (tmp_path / "run" / "report.json").read_text() == printed


def test_the_program_says_what_is_wrong(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file), "stepz=3"]) == 2
    assert main(["--config", str(config_file), "accumulate=3"]) == 2
    assert main(["--config", str(config_file), f"data.train={tmp_path}"]) == 1
    assert main(["--config", str(config_file), "output=s3://bucket/run"]) == 2
    assert main(["--config", str(config_file), "--dryrun"]) == 2
    said = ("did you mean 'steps'?", "batch_size does not divide", "not a shard set", "is a local folder", "did you mean '--dry-run'?")
    for line, part in zip(capsys.readouterr().err.splitlines(), said, strict=True):
        assert line.startswith("error: ")
        assert part in line


def test_the_program_shows_its_keys_and_its_configuration(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file), "--dry-run", "optim.lr=0.5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["lr"] == 0.5
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert key_help(TrainConfig) in capsys.readouterr().out


def test_the_module_is_a_program(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    done = subprocess.run([sys.executable, "-m", "uniovseg.training", "--config", str(missing)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: the configuration file cannot be read; seen: {missing}" in done.stderr
