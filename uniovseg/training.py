"""The training loop, top to bottom, in plain torch.

``python -m uniovseg.training --config jobs/configs/stage1_shapes.yaml`` runs it without Ray, in one process, on one GPU or the CPU.
`uniovseg.runtime.train` calls the same `train` with Ray's batches and report. A run is steps, not epochs: step s of a run always sees the same
samples with the same random draws (`uniovseg.data.plan`), so a resume needs nothing but the step, and the number of workers may change.
What several processes share, replicated or sharded, is `uniovseg.parallel`'s business.
"""

import argparse
import copy
import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from uniovseg import checkpoint, storage
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import CommandLine, Config, flatten_values, key_help, load, to_yaml, validate
from uniovseg.data.feed import planned_batches
from uniovseg.data.makers import EntitySampleMaker, MaskSampleMaker, PairSampleMaker, SampleMaker
from uniovseg.data.plan import Plan, groups_held
from uniovseg.data.samples import MaskSampleConfig
from uniovseg.data.shards import ShardSet
from uniovseg.data.views import ViewConfig
from uniovseg.errors import CheckpointError, ConfigError, DeviceMemoryError, TrainingError, TrainingStoppedError, UniOVSegError, tell
from uniovseg.evaluation.promptable import FIGURES, NO_SCORES, LabelledImage, PromptableConfig, evaluate_promptable, labelled
from uniovseg.evaluation.source import SourceConfig, benchmark_settings, open_source
from uniovseg.evaluation.words import mean_iou
from uniovseg.methods.base import OptimConfig, TrainableMethod
from uniovseg.methods.catalog import MethodConfig, build_method
from uniovseg.methods.promptable import PromptableSegmenter
from uniovseg.models.clip import check_digest, weights_digest
from uniovseg.online_matching import OnlineMatcher, OnlineMatchingConfig
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.parallel import Parallel, accumulating, distribute, save_shards, sum_over_ranks, whole, whole_state
from uniovseg.pictures import Picture, draw_masks, save_picture, tile
from uniovseg.plain import plain_bytes
from uniovseg.records import Batch, MaskBatch, PairBatch, StepOutput
from uniovseg.storage import Location


class DataConfig(Config):
    """What the run trains on."""

    train: str = Field(..., description="URI of the training shard set: stage 1's is made by jobs/ingest.py, stage 2's as `match` says")
    match: Literal["pairs", "online"] = Field(
        "pairs",
        description="stage 2's training set. pairs: matched beforehand by jobs/match.py; online: entities of jobs/refine.py, matched in the run",
    )
    online: OnlineMatchingConfig = Field(OnlineMatchingConfig(), description="matching in the run, for match=online")
    view: ViewConfig = Field(ViewConfig(), description="the random view of each sample")
    sample: MaskSampleConfig = Field(MaskSampleConfig(), description="which masks of a view are used")
    window_groups: int = Field(64, ge=1, description="row groups shuffled together")
    feed: Literal["ray", "threads"] = Field(
        "ray",
        description="who makes the samples of a run on Ray. ray: tasks on any CPU of the cluster; threads: the worker itself, best on few cores",
    )
    threads: int = Field(4, ge=1, description="threads that decode ahead, a worker (without Ray, or with feed=threads)")


ValidationMetric = Literal["val_point_iou", "val_box_iou", "val_box_fill_iou", "val_miou"]
"""What `make_validation` measures."""


class ValidationConfig(Config):
    """Validation during the run: 1-box and 1-point IoU, which stage 2 leaves as they are; and the mean IoU of the words that masks get."""

    shards: str | None = Field(None, description="URI of a shard set to validate on; null: no 1-box and 1-point IoU")
    images: int = Field(32, ge=1, description="images taken from its start")
    points_per_side: int = Field(20, ge=1, description="grid of the 1-point IoU, points a side")
    words: SourceConfig | None = Field(
        None, description="labelled set whose images are segmented into its classes as jobs/evaluate.py semantic does; null: no mean IoU"
    )
    every: int = Field(5000, ge=1, description="steps between validations; the last step validates too")

    @property
    def asked(self) -> bool:
        """Whether there is any validation."""
        return self.shards is not None or self.words is not None


class TrainConfig(Config):
    """One training run."""

    output: str = Field(..., description="folder or URI of the run: checkpoints, metrics.jsonl, report.json")
    seed: int = Field(42, ge=0, description="seed of weights, order of samples and every random draw")
    steps: int = Field(110_000, ge=1, description="optimizer steps")
    batch_size: int = Field(56, ge=1, description="samples an optimizer step, over all workers")
    accumulate: int = Field(
        1, ge=1, description="micro-batches that a worker's share of a batch is cut into; each counts alike, whatever its masks or pairs"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast outside the parts that ask for fp32")
    parallel: Parallel = Field(
        "ddp", description="several workers: ddp, each holds everything; fsdp, each holds a slice of weights and optimizer state, for large trunks"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description="CPU threads of torch, a worker; 0: torch's own choice")
    method: MethodConfig = Field(..., description="the method and its parts")
    init: str | None = Field(
        None, description="checkpoint folder or URI whose weights the run starts from ('shapes': the packaged model); null: random"
    )
    data: DataConfig = Field(..., description="training data")
    optim: OptimConfig = Field(OptimConfig(), description="optimizer and schedule")
    validation: ValidationConfig = Field(ValidationConfig(), description="validation during the run")
    log_every: int = Field(20, ge=1, description="steps between logged metrics")
    checkpoint_every: int = Field(5000, ge=1, description="steps between checkpoints; the last step makes one too")
    keep_checkpoints: int = Field(2, ge=1, description="how many checkpoints are kept")
    keep_metric: ValidationMetric | None = Field(
        None,
        description="which are kept. null: the newest; else those where this metric of a validation at their own step is largest, and the newest",
    )

    @model_validator(mode="after")
    def _ranked_by_a_validation(self) -> Self:
        source = "words" if self.keep_metric == "val_miou" else "shards"
        if self.keep_metric and getattr(self.validation, source) is None:
            raise ValueError(f"keep_metric={self.keep_metric} needs a validation: set validation.{source}")
        if self.keep_metric and not self.checkpoints_meet_validations:
            raise ValueError(
                f"of checkpoint_every ({self.checkpoint_every}) and validation.every ({self.validation.every}) one must be a multiple of the other, "
                "as keep_metric ranks checkpoints by a validation at their own step"
            )
        return self

    @model_validator(mode="after")
    def _sharded_only_where_all_do_the_same(self) -> Self:
        if self.parallel not in self.method.parallels:
            raise ValueError(
                f"parallel must be {' or '.join(self.method.parallels)} for {self.method.name}: what its workers ask of the frozen parts differs, "
                "which shards cannot follow"
            )
        return self

    @property
    def checkpoints_meet_validations(self) -> bool:
        """Whether each checkpoint is at a validation's step, or each validation at a checkpoint's; else few are."""
        return math.lcm(self.checkpoint_every, self.validation.every) in (self.checkpoint_every, self.validation.every)


class Recorder(Protocol):
    """Where a run's results go. Rank 0 logs; every rank calls `checkpoint`; any rank may `keep` a file."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of one step."""

    def pictures(self, step: int, pictures: dict[str, Picture]) -> None:
        """RGB pictures, by file name without ending."""

    def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        """Keep a checkpoint: `write` fills an empty folder with this rank's part of it; None: this rank has none.

        `metrics` are those of a validation at this step; empty where there was none.
        """

    def keep(self, name: str, data: bytes) -> str:
        """Keep a file beside the checkpoints; returns where it is."""


class Request(IntEnum):
    """What is asked of a run between two steps; the largest of all ranks' requests holds."""

    GO_ON = 0
    CHECKPOINT = 1
    STOP = 2


Ask = Callable[[int], Request]
"""Given the steps done, what is asked of the run. Every rank calls it after each step, and gets the same answer."""

Match = Callable[[Any, int], Batch]
"""What comes before a method whose batches are matched in the run: given a batch of the feed and the step, the batch that the method trains on."""

Validate = Callable[[TrainableMethod[Any]], tuple[dict[str, float], dict[str, Picture]]]


def pick_device(name: str) -> torch.device:
    """The device that the configuration's word means on this machine."""
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def lr_factor(optim: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of a step as a fraction of the peak: linear warm-up times the schedule."""
    if step < optim.warmup_steps:
        warmup = optim.warmup_factor + (1 - optim.warmup_factor) * step / optim.warmup_steps
    else:
        warmup = 1.0
    if optim.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
    return warmup * optim.gamma ** sum(step >= milestone * steps for milestone in optim.milestones)


class _Step(nn.Module):
    """`training_step` as a module's forward, which is where DDP and FSDP hook in."""

    def __init__(self, method: TrainableMethod[Any]) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: MaskBatch) -> dict[str, Tensor]:
        output: StepOutput = self.method.training_step(batch)
        return {"loss": output.loss, **output.metrics}


@dataclass
class _Meter:
    """Running sums of metrics since the last log; nothing is read from the device before `means`."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()

    def means(self, world_size: int) -> dict[str, float]:
        """Over all ranks, each of which must call this; then the sums start anew."""
        names = sorted(self.sums)
        device = self.sums["loss"].device
        sums = sum_over_ranks(torch.stack([self.sums[name].float().to(device) for name in names])).tolist()
        count, self.sums, self.count = self.count * world_size, {}, 0
        return {name: value / count for name, value in zip(names, sums, strict=True)}


def train(
    config: TrainConfig,
    method: TrainableMethod[Any],
    batches: Callable[[int], Iterator[Batch]],
    recorder: Recorder,
    *,
    match: Match | None = None,
    validate: Validate | None = None,
    ask: Ask | None = None,
    resume: Path | None = None,
    layout: str | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """Train `method` for ``config.steps`` steps. The gradient of a step is that of its micro-batches together, however many ranks share each.

    Args:
        config: the run.
        method: the method, on the CPU, with the weights to start from.
        batches: given the step to start at, yields this rank's micro-batches in the order of the plan, ``config.accumulate`` a step.
        recorder: where metrics, pictures and checkpoints go.
        match: turns each of `batches`, on the device, into one of the method's; None: they are that already.
        validate: run on rank 0 every ``config.validation.every`` steps and at the end; returns metrics and pictures.
        ask: asked after each step but the last; None: nobody stops the run.
        resume: a checkpoint folder to go on from.
        layout: `ShardSet.layout` of the set that `batches` come from.
        rank, world_size: this process among those that torch.distributed joins.

    Returns:
        The last validation's metrics; of a run that was at its end, those of its checkpoint. Empty without a validation.

    Raises:
        TrainingError: a loss or gradient that is not finite, raised on every rank before the optimizer has taken the step, with the batch kept.
        DeviceMemoryError: the device's memory does not hold a step; raised on the rank that finds it.
        TrainingStoppedError: `ask` said so, and a checkpoint is kept.
        CheckpointError: `resume` does not fit the run.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    method = method.to(device)
    method.train()
    sharded = config.parallel == "fsdp" and world_size > 1
    twin = copy.deepcopy(method) if sharded and validate and rank == 0 else method  # rank 0 validates alone, on whole weights
    step_module: nn.Module = _Step(method)
    start = restore_weights(config, method, resume, layout) if resume else 0
    if world_size > 1:
        step_module = distribute(step_module, config.parallel, device)
    names = {parameter: name for name, parameter in method.named_parameters()}
    groups = method.param_groups(config.optim)
    optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=config.optim.lr, foreach=True)
    trainable = [parameter for group in groups for parameter in group["params"]]
    if resume:
        checkpoint.restore_optimizer(optimizer, names, resume)

    meter, metrics = _Meter(), dict(checkpoint.read_info(resume).metrics) if resume else {}
    feed = batches(start)
    since = time.perf_counter()
    waited = 0.0
    for step in range(start, config.steps):
        factor = lr_factor(config.optim, step, config.steps)
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = settings["lr"] * factor

        loss, seen = torch.zeros((), device=device), list[Batch]()
        for micro in range(config.accumulate):
            asked = time.perf_counter()
            batch = next(feed).to(device)
            waited += time.perf_counter() - asked
            with memory_error_explained(config, f"step {step}", batch):
                batch = match(batch, step) if match else batch
                seen.append(batch)
                autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
                with accumulating(step_module, last=micro == config.accumulate - 1), autocast:
                    output = step_module(batch)
                    (output["loss"] / config.accumulate).backward()
            loss += output["loss"].detach()
            meter.add(output)

        norm = whole(nn.utils.clip_grad_norm_(trainable, config.optim.clip_grad_norm))
        if not torch.isfinite(norm + sum_over_ranks(loss)):
            place = recorder.keep(f"not_finite/step_{step:07d}_rank_{rank}.pt", kept_step(step, rank, float(loss), float(norm), seen))
            raise TrainingError(
                f"the loss or its gradient is not finite at step {step}",
                seen=f"loss {float(loss)}, gradient norm {float(norm)}, rank {rank}, samples {', '.join(key for each in seen for key in each.keys)}",
                fix=f"the weights are unchanged; lower optim.lr, or look at the batch: torch.load({place!r}, weights_only=True)",
            )
        with memory_error_explained(config, f"step {step}", batch):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(step)
        done = step + 1
        last = done == config.steps
        request = ask(done) if ask and not last else Request.GO_ON

        if done % config.log_every == 0 or last or request is Request.STOP:
            seconds = time.perf_counter() - since
            images = meter.count // config.accumulate * config.batch_size
            line = meter.means(world_size) | {"lr": config.optim.lr * factor, "grad_norm": float(norm), "workers": float(world_size)}
            if rank == 0:
                recorder.log(done, line | {"images_per_second": images / seconds, "data_wait_share": waited / seconds})
            since, waited = time.perf_counter(), 0.0
        paused = time.perf_counter()
        validated: dict[str, float] = {}
        if config.validation.asked and sharded and (done % config.validation.every == 0 or last):
            state = whole_state(method.state(), keep=rank == 0)
            if validate and rank == 0:
                twin.load_state_dict(state, strict=False)
        if validate and rank == 0 and (done % config.validation.every == 0 or last):
            twin.eval()
            with memory_error_explained(config, f"the validation after step {done}", batch, "lower validation.points_per_side or method.size"):
                metrics, pictures = validate(twin)
            twin.train()
            validated = metrics
            recorder.log(done, metrics)
            recorder.pictures(done, pictures)
        if done % config.checkpoint_every == 0 or last or request is not Request.GO_ON:
            info = checkpoint_info(config, done, validated, layout, world_size)
            recorder.checkpoint(done, checkpoint_writer(config, method, optimizer, names, info, rank), validated)
        since += time.perf_counter() - paused
        if request is Request.STOP:
            raise TrainingStoppedError(
                f"the training was stopped after step {done} of {config.steps}", fix="start it again as it was, and it goes on there"
            )
    return metrics


SMALLER_STEP = "raise accumulate, add workers, use precision=bf16 or parallel=fsdp, or lower the size of the view or data.sample.max_masks"
"""What to do where the device's memory does not hold a step."""


@contextmanager
def memory_error_explained(config: TrainConfig, what: str, batch: Batch, fix: str = SMALLER_STEP) -> Iterator[None]:
    """Raise a DeviceMemoryError that says `what` was done, and what to do, where the block exhausts the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the device's memory does not hold {what}",
            seen=f"{len(batch.keys)} samples a micro-batch, precision {config.precision}; {' '.join(str(error).split())[:300]}",
            fix=fix,
        ) from error


def kept_step(step: int, rank: int, loss: float, norm: float, batches: Sequence[Batch]) -> bytes:
    """A step as a .pt file for ``torch.load(..., weights_only=True)``: numbers, the samples' keys, and the micro-batches that were trained on."""
    keys = [list(batch.keys) for batch in batches]
    return plain_bytes({"step": step, "rank": rank, "loss": loss, "gradient_norm": norm, "keys": keys, "batches": list(batches)})


def checkpoint_info(config: TrainConfig, step: int, metrics: dict[str, float], layout: str | None, world_size: int) -> CheckpointInfo:
    """What a run's checkpoint after `step` steps says of itself."""
    dumped = config.model_dump(mode="json")
    digest = weights_digest(config.method.clip)
    return CheckpointInfo(step=step, method=dumped["method"], config=dumped, metrics=metrics, workers=world_size, layout=layout, clip_digest=digest)


def checkpoint_writer(
    config: TrainConfig,
    method: TrainableMethod[Any],
    optimizer: torch.optim.Optimizer,
    names: dict[nn.Parameter, str],
    info: CheckpointInfo,
    rank: int,
) -> Callable[[Path], None] | None:
    """A function that writes this rank's part of the run's state into a folder; None where rank 0 writes it all. Every rank must call this."""
    state = whole_state(method.state(), keep=rank == 0)
    moments = checkpoint.optimizer_tensors(optimizer, names)
    if config.parallel == "ddp":
        return (lambda folder: checkpoint.save(folder, info, state, moments)) if rank == 0 else None

    def write(folder: Path) -> None:
        save_shards(folder, moments)
        if rank == 0:
            checkpoint.save(folder, info, state)

    return write


RESUMABLE: frozenset[str] = frozenset(
    {
        "output",
        "device",
        "threads",
        "accumulate",
        "precision",
        "parallel",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_metric",
        "validation",
        "data.threads",
        "data.feed",
        "method.feature_memory_mib",
    }
)
"""Keys of `TrainConfig`, with all below them, that a resumed run may change: they do not change which samples a step learns from. Of these only
``accumulate`` changes how: the pairs of a micro-batch share its weight."""


def refuse_other_run(config: TrainConfig, info: CheckpointInfo, layout: str | None = None) -> None:
    """Raise CheckpointError when the checkpoint is of a run whose configuration differs in more than `RESUMABLE` keys, or on a set of another `layout`.

    A key that is newer than the run was at its default.
    """
    now = config.model_dump(mode="json", include=set(TrainConfig.model_fields))
    before = {key: now[key] if key in RESUMABLE else info.config[key] for key in now.keys() & (RESUMABLE | info.config.keys())}
    with suppress(ConfigError):  # by today's rules it may be wrong; then it is compared as it is
        before = validate(TrainConfig, before).model_dump(mode="json")
    found, kept = flatten_values(now), flatten_values(before)
    changed = sorted(key for key in (found.keys() | kept.keys()) - RESUMABLE if found.get(key) != kept.get(key))
    if changed:
        raise CheckpointError(
            "the checkpoint is of a run with another configuration",
            seen=", ".join(changed),
            allowed=f"changes of {', '.join(sorted(RESUMABLE))}",
            fix="give the run another output folder to start anew",
        )
    if None not in (layout, info.layout) and layout != info.layout:
        raise CheckpointError(
            "the training set is not the one that the checkpoint's run began with: some samples would come twice, others never",
            seen=f"layout {layout} of {config.data.train}",
            allowed=f"{info.layout}",
            fix="give the run another output folder, and init=CHECKPOINT to start from these weights",
        )


def restore_weights(config: TrainConfig, method: TrainableMethod[Any], folder: Path, layout: str | None) -> int:
    """Load a checkpoint's weights into the method; returns the step to go on with.

    Raises:
        CheckpointError: as `refuse_other_run`.
    """
    info = checkpoint.read_info(folder)
    refuse_other_run(config, info, layout)
    checkpoint.load_weights(method, checkpoint.read_weights(folder), set(method.state()))
    return info.step


def everything_picture(method: PromptableSegmenter, samples: list[LabelledImage]) -> Picture:
    """For each image a row of three: the image, its ground truth, and what `everything` finds."""
    pictures: list[Picture] = []
    for sample in samples:
        found = method.propose(method.embed(sample.image))
        pictures += [sample.image, draw_masks(sample.image, sample.masks), draw_masks(sample.image, found.masks)]
    return tile(pictures, columns=3, side=256)


def make_validation(config: TrainConfig) -> Validate | None:
    """The validation that the configuration asks for; None without a validation set."""
    asked = config.validation
    if not asked.asked:
        return None
    samples = [] if asked.shards is None else list(labelled(ShardSet(asked.shards).records(asked.images)))
    promptable = PromptableConfig(points_per_side=asked.points_per_side)
    words = None if asked.words is None else open_source(asked.words)
    brought = benchmark_settings(asked.words.benchmark if asked.words else None)
    segmentation = SegmentationConfig.model_validate(brought.get("segmentation", {}))

    def validate(method: TrainableMethod[Any]) -> tuple[dict[str, float], dict[str, Picture]]:
        assert isinstance(method, PromptableSegmenter)
        scores = sum(evaluate_promptable(method, samples, promptable), NO_SCORES).summary()
        metrics = {f"val_{name}": value for name in FIGURES if (value := scores[name]) is not None}
        if words is not None:
            miou = mean_iou(method.with_settings(brought.get("method", {})), words, segmentation)
            metrics |= {} if math.isnan(miou) else {"val_miou": miou}  # no class is in any ground truth
        return metrics, {"everything": everything_picture(method, samples[:4])} if samples else {}

    return validate


class FolderRecorder:
    """Keeps a run's results in a folder of this machine: metrics.jsonl, pictures/, step_N/ checkpoints.

    Args:
        folder: the run's folder.
        most: checkpoints kept.
        metric: which: None, the newest; else those where this validation metric is largest, and the newest. One without a validation ranks lowest.
    """

    def __init__(self, folder: Path, most: int, metric: str | None = None) -> None:
        self.folder, self.most, self.metric = folder, most, metric

    def rewind(self, step: int) -> None:
        """Drop the metrics of later steps than `step`, which a run that was killed left behind."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step} | metrics) + "\n")

    def pictures(self, step: int, pictures: dict[str, Picture]) -> None:
        """Write PNG files."""
        (self.folder / "pictures").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            save_picture(str(self.folder / "pictures" / f"{name}_{step:07d}.png"), picture)

    def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        """Write a checkpoint, then remove the oldest ones, or those of the lowest metric."""
        if write is not None:
            write(self.folder / f"step_{step:07d}")
            found = checkpoints(self.folder)
            ranked = sorted(found, key=self._metric) if self.metric else found
            for old in set(ranked[: -self.most]) - {found[-1]}:
                shutil.rmtree(old)

    def _metric(self, folder: Path) -> float:
        assert self.metric is not None
        return checkpoint.read_info(folder).metrics.get(self.metric, -math.inf)

    def keep(self, name: str, data: bytes) -> str:
        """Write a file into the run's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run's folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step_*/{checkpoint.MANIFEST}"))


def initial_method(config: TrainConfig) -> TrainableMethod[Any]:
    """The run's method with the weights it starts from: random ones by the seed, or those of ``config.init``, with what it ``starts_fresh``."""
    method = build_method(config.method, config.seed)
    if config.init is not None:
        with checkpoint.opened(config.init) as folder:
            check_digest(config.method.clip, checkpoint.read_info(folder).clip_digest)
            state = checkpoint.read_weights(folder)
        given = {name.partition(".")[0] for name in state}
        fresh = tuple(f"{name}." for name in method.starts_fresh if name not in given)
        checkpoint.load_weights(method, state, {name for name in method.state() if not name.startswith(fresh or ("\0",))})
    return method


def sample_maker(config: TrainConfig, method: TrainableMethod[Any]) -> SampleMaker[Any, Batch]:
    """What turns the rows of ``config.data.train`` into the batches that `method` trains on, or that are matched for it.

    Raises ConfigError where ``data.match`` is online and the method does not train on pairs.
    """
    makers: dict[tuple[str, type], SampleMaker[Any, Batch]] = {
        ("pairs", MaskBatch): MaskSampleMaker(config.data.view, config.data.sample, config.seed),
        ("pairs", PairBatch): PairSampleMaker(config.data.view, config.seed),
        ("online", PairBatch): EntitySampleMaker(config.data.view, config.seed),
    }
    maker = makers.get((config.data.match, method.batch_type))
    if maker is None:
        raise ConfigError("this method does not train on pairs, so it has nothing to match", seen=f"data.match={config.data.match}", allowed="pairs")
    return maker


def make_match(config: TrainConfig, method: TrainableMethod[Any]) -> Match | None:
    """The matching before `method` that the configuration asks for; None where the batches of `sample_maker` are the method's own."""
    if config.data.match == "pairs":
        return None
    assert isinstance(method, PromptableSegmenter)
    return OnlineMatcher(config.data.online, method, config.steps)


def local_batches(config: TrainConfig, maker: SampleMaker[Any, Batch], start: int, rank: int, world_size: int) -> Iterator[Batch]:
    """This rank's micro-batches from step `start` on, without end, made by threads of this process."""
    shards = ShardSet(config.data.train)
    plan = Plan([group.rows for group in shards.groups], seed=config.seed, batch_size=config.batch_size, window_groups=config.data.window_groups)
    slices = plan.slices(start, rank=rank, world_size=world_size, parts=config.accumulate)
    return planned_batches(shards, slices, maker, threads=config.data.threads, groups=groups_held(config.data.window_groups, world_size))


def run(config: TrainConfig, stopped: threading.Event | None = None) -> dict[str, float]:
    """Train in this process, without Ray, going on from the newest checkpoint in ``config.output``; returns the last validation's metrics.

    Raises:
        TrainingStoppedError: `stopped` was set, and a checkpoint is kept.
        ConfigError: the output is no folder of this machine.
    """
    if not Location.of(config.output).is_local:
        raise ConfigError("without Ray a run's output is a local folder", seen=config.output, fix="jobs/train.py writes to a store")
    folder = Path(Location.of(config.output).uri)
    folder.mkdir(parents=True, exist_ok=True)
    method = initial_method(config)
    maker = sample_maker(config, method)

    def batches(start: int) -> Iterator[Batch]:
        return local_batches(config, maker, start, rank=0, world_size=1)

    def ask(_: int) -> Request:
        return Request.STOP if stopped is not None and stopped.is_set() else Request.GO_ON

    found = checkpoints(folder)
    recorder = FolderRecorder(folder, config.keep_checkpoints, config.keep_metric)
    if found:
        recorder.rewind(checkpoint.read_info(found[-1]).step)
    match, validate, resume = make_match(config, method), make_validation(config), found[-1] if found else None
    layout = ShardSet(config.data.train).layout
    return train(config, method, batches, recorder, match=match, validate=validate, ask=ask, resume=resume, layout=layout)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m uniovseg.training --config FILE [key=value ...]``; exit code 2 for a wrong configuration, 1 for another failure.

    What `run` returns is printed, and written to the run's report.json.
    SIGTERM ends it after a checkpoint of the step it is in, with exit code 143 as signals have.
    """
    parser = CommandLine(
        prog="python -m uniovseg.training",
        description="Train without Ray, in one process.",
        epilog=key_help(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file, as for jobs/train.py; its Ray and MLflow keys are left aside")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    stopped = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        arguments = parser.parse_args(argv)
        config = load(TrainConfig, arguments.config, arguments.overrides, ignore=RAY_KEYS)
        if arguments.dry_run:
            sys.stdout.write(to_yaml(config))
            return 0
        report = json.dumps(run(config, stopped)) + "\n"
        storage.write_bytes(Location.of(config.output) / "report.json", report.encode())
        sys.stdout.write(report)
    except TrainingStoppedError as error:
        sys.stderr.write(f"{error}\n")
        return 128 + signal.SIGTERM
    except UniOVSegError as error:
        return tell(error)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


RAY_KEYS = frozenset(
    {
        "workers", "min_workers", "resize_seconds", "gpus_per_worker", "cpus_per_worker", "placement", "start_minutes", "autoscaled",
        "max_failures", "failed_checkpoints", "resume", "tracking",
    }
)  # fmt: skip
"""Keys of a training job's file that only a run on Ray reads."""


if __name__ == "__main__":
    sys.exit(main())
