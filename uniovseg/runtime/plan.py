"""What a training run or the text stage takes on a cluster of a given size, on paper.

Everything that works at the same time gives a rate of its own (GPUs, CPUs of the feed, the network to S3, the exchange of gradients, an endpoint's bound);
the smallest is what to expect, and its owner is the bottleneck: what overlaps does not add up. Memory is reckoned at its most. The figures come from
`uniovseg.runtime.costs`, bytes of an image and rows of a row group from the manifest where it can be read.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from uniovseg.data.plan import groups_held
from uniovseg.data.shards import ShardSet
from uniovseg.errors import ConfigError, UniOVSegError
from uniovseg.runtime.costs import Costs, Figure
from uniovseg.runtime.datasets import ROWS_A_BLOCK
from uniovseg.runtime.doctor import s3_credentials
from uniovseg.runtime.model_size import ModelSize, model_size
from uniovseg.runtime.refine import RefineConfig
from uniovseg.runtime.train import TrainJobConfig
from uniovseg.storage import Location

TRUNK = "convnext_large_d_320"
"""The CLIP that the figures of training are for."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a plan needs of a shard set: bytes of a sample, rows of a row group, and where that is known from."""

    image_bytes: float
    rows_per_group: float
    source: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What to expect of one cluster.

    Attributes:
        gpus, nodes: its size; a node may be a part of the machine that the figures are of.
        unit: what is counted.
        total: of these, in the whole run.
        batch, steps: of a training; 0 for the text stage.
        limits: units a second that each part allows.
        s3_bytes: read from S3, a node and second.
        object_store, host_memory: bytes of a node, at most; node_memory: what it has.
        checkpoint_bytes: of one checkpoint; checkpoint_total: written in the whole run.
        dollars_an_hour: of the cluster.
    """

    gpus: int
    nodes: int
    unit: Literal["images", "captions"]
    total: float
    batch: int
    steps: int
    limits: dict[str, float]
    s3_bytes: float
    object_store: float
    host_memory: float
    node_memory: float
    checkpoint_bytes: float
    checkpoint_total: float
    dollars_an_hour: float

    @property
    def bottleneck(self) -> str:
        """What allows the least."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.limits[self.bottleneck]

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.total / self.rate / 3600

    @property
    def dollars(self) -> float:
        """Of the whole run."""
        return self.hours * self.dollars_an_hour


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Resources of `gpus` GPUs with their share of the machines that they come in."""

    gpus: int
    nodes: int
    cpus: float
    network: float
    node_memory: float

    @property
    def gpus_a_node(self) -> float:
        return self.gpus / self.nodes


def _cluster(gpus: int, costs: Costs) -> _Cluster:
    if gpus < 1:
        raise ConfigError("a plan needs GPUs", seen=gpus, allowed="at least 1")
    nodes, share = math.ceil(gpus / costs("node_gpus")), gpus / costs("node_gpus")
    return _Cluster(gpus, nodes, share * costs("node_cpus"), share * costs("node_network"), share / nodes * costs("node_memory"))


def data_facts(uri: str, costs: Costs) -> DataFacts:
    """From the manifest of the shard set, or from the costs where it cannot be read."""
    try:
        if not uri.startswith("s3://") or s3_credentials():
            manifest = ShardSet(uri).manifest
            groups = sum(len(shard.rows) for shard in manifest.shards)
            if manifest.samples:
                return DataFacts(
                    sum(shard.bytes for shard in manifest.shards) / manifest.samples, manifest.samples / groups, f"the manifest of {uri}"
                )
        reason = "no S3 credentials"
    except UniOVSegError as error:
        reason = str(error).partition(";")[0]
    return DataFacts(costs("image_bytes"), costs("rows_per_group"), f"the costs; {Location.of(uri).uri} was not read: {reason}")


def gpu_seconds(config: TrainJobConfig, costs: Costs) -> float:
    """GPU-seconds of an image in training.

    Stage 1 is the published figure by the number of pixels; on a GPU without one it goes by the memory bandwidth, which favours a new GPU less than its
    arithmetic does. Layers of the decoder are not reckoned. Stage 2 from pairs is the frozen trunk's forward pass; the adapter adds little.

    Raises:
        ConfigError: there are no figures for this method, CLIP or way of matching.
    """
    method = config.method
    if method.clip.name != TRUNK:
        raise ConfigError("no figures of training with this CLIP", seen=method.clip.name, allowed=TRUNK)
    if method.name == "mask_text_alignment":
        if config.data.match != "pairs":
            raise ConfigError("no figures of matching in the run", seen=f"data.match={config.data.match}", allowed="pairs")
        operations = costs("trunk_flops") * (config.data.view.size / 320) ** 2
        return operations / (costs("peak_flops") * costs("trunk_utilisation"))
    pixels = (config.data.view.size / 896) ** 2
    if costs.has("stage1_seconds"):
        return pixels * costs("stage1_seconds")
    return pixels * costs("stage1_seconds", "v100") * costs("memory_bandwidth", "v100") / costs("memory_bandwidth")


def plan_training(config: TrainJobConfig, gpus: int, costs: Costs, data: DataFacts, size: ModelSize | None = None) -> Estimate:
    """A training with one worker a GPU. A batch that does not divide over the workers grows until it does, and the steps shrink with it.

    Args:
        config: the run; its number of workers is not used.
        gpus: GPUs.
        costs: figures of the GPU.
        data: of the training set.
        size: of the method; None: found from `config`.

    Raises:
        ConfigError: see `gpu_seconds`; or a worker takes more CPUs than come with a GPU.
    """
    cluster, size = _cluster(gpus, costs), size or model_size(config.method)
    batch = math.ceil(max(config.batch_size, gpus) / gpus) * gpus
    steps = math.ceil(config.steps * config.batch_size / batch)
    free = cluster.cpus - gpus * config.cpus_per_worker
    if free < 0:
        raise ConfigError("a worker takes more CPUs than come with a GPU", seen=config.cpus_per_worker, allowed=f"at most {cluster.cpus / gpus:g}")
    by_ray = config.data.feed == "ray"
    feeding = free * costs("ray_efficiency") if by_ray else gpus * min(config.data.threads, config.cpus_per_worker)
    limits = {
        "GPUs": gpus / gpu_seconds(config, costs),
        "CPUs of the feed": feeding * costs("cores_a_cpu") / costs("sample_cpu"),
        "network to S3": cluster.network / data.image_bytes,
    }
    if cluster.nodes > 1:  # a ring: each node sends and takes all gradients nearly twice
        exchanged = 2 * (cluster.nodes - 1) / cluster.nodes * size.gradient_bytes
        limits["exchange of gradients"] = batch / (exchanged / (cluster.network / cluster.nodes))
    store = cluster.gpus_a_node * _object_store(config, batch // gpus, free / gpus, data, costs) if by_ray else 0.0
    host = store + cluster.gpus_a_node * _process_memory(config, gpus, free / gpus if by_ray else 0.0, data, costs)
    written = steps // config.checkpoint_every + (steps % config.checkpoint_every > 0)
    return Estimate(
        gpus=gpus, nodes=cluster.nodes, unit="images", total=float(steps * batch), batch=batch, steps=steps, limits=limits,
        s3_bytes=min(limits.values()) * data.image_bytes / cluster.nodes, object_store=store, host_memory=host, node_memory=cluster.node_memory,
        checkpoint_bytes=size.checkpoint_bytes, checkpoint_total=written * size.checkpoint_bytes + size.weights_bytes,
        dollars_an_hour=gpus * costs("gpu_price"),
    )  # fmt: skip


def _object_store(config: TrainJobConfig, share: int, cpus: float, data: DataFacts, costs: Costs) -> float:
    """Bytes of Ray Data's blocks for one worker, at most: each task's block of rows and of samples, one of each waiting, and two batches fetched ahead."""
    micro = max(1, share // config.accumulate)
    rows = max(1, ROWS_A_BLOCK // micro) * micro
    sample = 3 * config.data.view.size**2 + costs("mask_bytes")
    blocks = max(1, int(cpus)) + 1
    return blocks * rows * (data.image_bytes + sample) + 2 * micro * sample


def _process_memory(config: TrainJobConfig, gpus: int, cpus: float, data: DataFacts, costs: Costs) -> float:
    """Bytes of the processes of one worker and its feed, whose reader holds row groups."""
    held = groups_held(config.data.window_groups, gpus) * data.rows_per_group * data.image_bytes
    return costs("worker_bytes") + held + int(cpus) * costs("task_bytes")


def plan_text(config: RefineConfig, gpus: int, costs: Costs) -> Estimate:
    """The text stage with its language models on the cluster's GPUs, each model as many as it needs.

    Raises:
        ConfigError: no model is asked, or a model's name does not tell its parameters (as 34b does).
    """
    if not config.asked:
        raise ConfigError("no language model is asked, so there is nothing to plan for GPUs", seen="refine: none, parser without a model")
    cluster, total, limits = _cluster(gpus, costs), 0.0, dict[str, float]()
    for asked in config.asked:
        endpoint, kind = getattr(config, asked), "caption" if asked == "captioner" else "entities"
        found = re.search(r"(\d+(?:\.\d+)?)b\b", endpoint.model.lower())
        if found is None:
            raise ConfigError(
                "the model's name does not tell its parameters", seen=f"{asked}.model={endpoint.model}", allowed="a name with 7b or the like"
            )
        prompt, reply = costs(f"{kind}_prompt_tokens"), costs(f"{kind}_reply_tokens")
        operations = 2e9 * float(found[1]) * (prompt / costs("prompt_utilisation") + reply / costs("reply_utilisation"))
        total += operations / costs("peak_flops")
        limits[f"{asked}.concurrency"] = endpoint.concurrency / (reply * costs("reply_token_seconds"))
    limits = {"GPUs": gpus / total, "network to S3": cluster.network / costs("caption_image_bytes")} | limits
    return Estimate(
        gpus=gpus, nodes=cluster.nodes, unit="captions", total=costs("captions"), batch=0, steps=0, limits=limits,
        s3_bytes=min(limits.values()) * costs("caption_image_bytes") / cluster.nodes, object_store=0.0, host_memory=0.0, node_memory=cluster.node_memory,
        checkpoint_bytes=0.0, checkpoint_total=0.0, dollars_an_hour=gpus * costs("gpu_price"),
    )  # fmt: skip


def estimates_table(estimates: Sequence[Estimate], title: str) -> Table:
    """The estimates side by side, one column each."""
    table = Table(title=title)
    table.add_column("")
    for estimate in estimates:
        table.add_column(f"{estimate.gpus} GPUs" if estimate.gpus > 1 else "1 GPU", justify="right")
    for name, cells in _rows(estimates):
        table.add_row(name, *cells)
    return table


def _rows(estimates: Sequence[Estimate]) -> list[tuple[str, list[str]]]:
    unit, training = estimates[0].unit, estimates[0].unit == "images"
    rows = [("nodes", [f"{item.nodes}" for item in estimates])]
    if training:
        rows.append(("batch, steps", [f"{item.batch}, {item.steps:,}" for item in estimates]))
    rows.append((f"{unit}/s", [_number(item.rate) for item in estimates]))
    rows.append(("bottleneck", [item.bottleneck for item in estimates]))
    names = {name: None for item in estimates for name in item.limits}
    rows += [(f"  {name} allow {unit}/s", [_number(item.limits[name]) if name in item.limits else "-" for item in estimates]) for name in names]
    rows.append(("from S3, MB/s a node", [_number(item.s3_bytes / 1e6) for item in estimates]))
    if training:
        rows.append(("object store, GB a node", [_number(item.object_store / 1e9) for item in estimates]))
        rows.append(("host memory, GB a node", [_memory(item) for item in estimates]))
        rows.append(
            ("a checkpoint, MB; the run, GB", [f"{item.checkpoint_bytes / 1e6:.0f}; {item.checkpoint_total / 1e9:.1f}" for item in estimates])
        )
    rows.append(("hours", [_number(item.hours) for item in estimates]))
    rows.append(("dollars", [f"{item.dollars:,.0f}" for item in estimates]))
    return rows


def _memory(item: Estimate) -> str:
    return f"{_number(item.host_memory / 1e9)} of {_number(item.node_memory / 1e9)}{'' if item.host_memory <= item.node_memory else ': too much'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figures_table(figures: Sequence[Figure]) -> Table:
    """The figures that a plan used, assumptions marked."""
    table = Table("figure", "value", "kind", "source", title="Figures")
    for item in figures:
        kind = f"[bold yellow]{item.kind}[/]" if item.kind == "assumed" else item.kind
        table.add_row(" ".join(filter(None, (item.name, item.gpu))), f"{item.value:g} {item.unit}", kind, item.source)
    return table
