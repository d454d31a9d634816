"""What feeding costs: Ray Data from an object store into one and two training workers, against a plain DataLoader over the same shards.

Unless a shard set is given, two synthetic ones are put into an object store that is started here, behind a proxy that can add time to every request.
*Large* samples are like SA-1B's; by them CPU time is compared, that of all processes but the store's. *Small* ones cost little CPU, so that two
workers on few cores can show whether requests wait for each other: by them scaling is measured, with time added to every request.

What is compared is measured in turn, in several rounds, since a machine's pace changes from minute to minute; a ratio is the median of the rounds'.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.util import Finalize
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import cv2
import numpy as np
import psutil
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uniovseg import storage
from uniovseg.benchmarks.data import DataBenchmarkConfig, cpu_seconds, synthetic_record
from uniovseg.benchmarks.fault_proxy import FaultProxy, Weather
from uniovseg.benchmarks.object_store import ObjectStore
from uniovseg.config import Config
from uniovseg.data.makers import MaskSampleMaker
from uniovseg.data.samples import MaskSampleConfig
from uniovseg.data.shards import ShardSet
from uniovseg.data.views import ViewConfig
from uniovseg.records import ImageMasks, MaskBatch, MaskSample
from uniovseg.runtime.datasets import PlannedRows
from uniovseg.runtime.feeding import Feeding, FeedWorkers, take_steps
from uniovseg.runtime.session import KEEP_FREED_MEMORY, ray_session
from uniovseg.runtime.shards import PartRange, write_manifest, write_part
from uniovseg.storage import Location


class SampleKind(Config):
    """Synthetic samples, and the view that is made of them."""

    samples: int = Field(..., ge=1, description="images")
    masks: int = Field(..., ge=1, description="masks an image")
    height: int = Field(..., ge=64, description="height of the images, pixels")
    width: int = Field(..., ge=64, description="width of the images, pixels")
    view: int = Field(..., ge=32, description="side of the view, pixels")
    rows_per_group: int = Field(..., ge=1, description="rows of a row group")


class FeedBenchmarkConfig(Config):
    """What is measured, and how long."""

    output: str = Field("runs/benchmark_feed", description="folder of report.json")
    source: str | None = Field(None, description="image-mask shard set to read, without added time; null: synthetic ones in a store started here")
    seed: int = Field(0, ge=0, description="seed of the synthetic samples, the order and the views")
    large: SampleKind = Field(SampleKind(samples=64, masks=100, height=1500, width=2250, view=1024, rows_per_group=8), description="like SA-1B")
    small: SampleKind = Field(SampleKind(samples=512, masks=10, height=240, width=320, view=128, rows_per_group=8), description="for scaling")
    batch: int = Field(8, ge=1, description="samples of a worker's step")
    window_groups: int = Field(4, ge=1, description="row groups shuffled together")
    first: int = Field(48, ge=1, description="steps of a worker that are not counted, until all processes run: each imports for seconds")
    steps: int = Field(60, ge=1, description="steps of a worker that are counted in a round; small samples: 3 times as many")
    rounds: int = Field(3, ge=1, description="rounds of what is compared; waiting, and two workers of large samples, are measured in the first only")
    feed_cpus: float = Field(2.0, ge=1.5, description="CPUs that a worker's feed may use")
    loader_processes: int = Field(2, ge=1, description="processes of the DataLoader")
    latency: float = Field(0.05, ge=0, description="seconds added to every request in the runs that measure scaling")
    demand: float = Field(0.8, gt=0, le=1, description="waiting is measured with steps that take samples at this share of the rate without steps")


TARGETS = {"cpu: Ray Data / DataLoader": ("at most", 1.1), "late requests: 2 workers / 1 worker": ("at least", 1.8)}


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement: what was taken in how many seconds, all workers together, and how much of these a worker waited."""

    name: str
    samples: int
    seconds: float
    cpu_seconds: float
    waited: float

    def __add__(self, other: "Line") -> "Line":
        """This measurement and its repetition."""
        return Line(
            self.name,
            self.samples + other.samples,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            self.waited + other.waited,
        )

    @property
    def figures(self) -> dict[str, float]:
        """The measurement in the terms of the report."""
        return {
            "samples_a_second": self.samples / self.seconds,
            "cpu_seconds_a_sample": self.cpu_seconds / self.samples,
            "waiting": self.waited / self.seconds,
        }


class _Rows(IterableDataset[MaskSample]):
    """A shard set's samples for ever: each process of the loader reads every n-th row group of an epoch's order."""

    def __init__(self, uri: str, maker: MaskSampleMaker) -> None:
        self.uri, self.maker = uri, maker

    def __iter__(self) -> Iterator[MaskSample]:
        cv2.setNumThreads(1)  # as Ray Data's tasks
        shards, info = ShardSet(self.uri), get_worker_info()
        assert info is not None, "this is a process of a DataLoader"
        Finalize(None, os._exit, (0,), exitpriority=0)  # its end: Arrow reads ahead in threads that would abort the interpreter with a trace
        for epoch in count():
            order = np.random.default_rng([self.maker.seed, epoch]).permutation(len(shards.groups))
            for group in order[info.id :: info.num_workers]:
                table = shards.read_group(int(group))
                for row in range(len(table)):
                    yield self.maker.make(table, row, epoch)


class _Meter:
    """Measures what this process and its descendants do, but for the store's."""

    def __init__(self, config: FeedBenchmarkConfig, not_counted: Sequence[int]) -> None:
        self.config, self.not_counted = config, not_counted

    def loader(self, name: str, uri: str, maker: MaskSampleMaker) -> Line:
        """A DataLoader's rate into this process; what runs already, such as Ray's processes, is not counted."""
        config, others = self.config, [*self.not_counted, *(child.pid for child in psutil.Process().children(recursive=True))]
        loader = DataLoader(
            _Rows(uri, maker),
            batch_size=config.batch,
            num_workers=config.loader_processes,
            collate_fn=maker.collate,
            multiprocessing_context="spawn",
        )
        batches: Iterator[MaskBatch] = iter(loader)
        take_steps(batches, config.first, 0.0)
        since = cpu_seconds(others)
        return self._line(name, [take_steps(batches, config.steps, 0.0)], cpu_seconds(others) - since)

    def workers(self, name: str, uri: str, maker: MaskSampleMaker, count: int, steps: int, waiting: bool) -> list[Line]:
        """Ray Data's rate into `count` workers; where `waiting`, also, with steps that take time, how long they wait."""
        config, groups = self.config, tuple(group.rows for group in ShardSet(uri).groups)
        rows = [
            PlannedRows(uri, groups, config.seed, config.batch * count, config.window_groups, rank=rank, world_size=count, parts=1)
            for rank in range(count)
        ]
        workers = FeedWorkers(rows, maker, config.feed_cpus, config.first, 2 * steps)
        lines = [self._taken(name, workers, steps, 0.0)]
        if waiting:
            pause = config.batch * count / lines[0].figures["samples_a_second"] / config.demand
            lines.append(self._taken(f"{name}, steps of {pause:.2f} s", workers, steps, pause))
        workers.close()
        return lines

    def _taken(self, name: str, workers: FeedWorkers, steps: int, step_seconds: float) -> Line:
        since = cpu_seconds(self.not_counted)
        feedings = workers.take(steps, step_seconds)
        return self._line(name, feedings, cpu_seconds(self.not_counted) - since)

    def _line(self, name: str, feedings: Sequence[Feeding], cpu: float) -> Line:
        samples, seconds = sum(item.samples for item in feedings), max(item.seconds for item in feedings)
        return Line(name, samples, seconds, cpu, sum(item.waited for item in feedings) / len(feedings))


def _maker(config: FeedBenchmarkConfig, view: int) -> MaskSampleMaker:
    return MaskSampleMaker(ViewConfig(size=view, colour_jitter=False), MaskSampleConfig(), config.seed)


def _put(config: FeedBenchmarkConfig, kind: SampleKind, uri: str) -> str:
    """Write a synthetic shard set; its URI."""
    like = DataBenchmarkConfig.model_construct(seed=config.seed, masks=kind.masks, height=kind.height, width=kind.width)
    records: Iterator[tuple[int, ImageMasks]] = ((index, synthetic_record(like, index)) for index in range(kind.samples))
    part = PartRange(name="synthetic", source="synthetic", begin=0, end=kind.samples)
    write_manifest(Location(uri), [write_part(part, records, Location(uri), kind.rows_per_group)])
    return uri


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(config: FeedBenchmarkConfig) -> dict[str, Any]:
    """Measure, print a table, and return the lines, the ratios with their targets, and what the machine offers.

    Raises:
        StorageError: the store's programs, from the dev extra, are not installed.
    """
    with ExitStack() as stack:
        rounds = _given(config) if config.source else _synthetic(config, stack)
    lines: dict[str, Line] = {}
    for of_round in rounds:
        for name, line in of_round.items():
            lines[name] = lines[name] + line if name in lines else line
    report = {"lines": {name: line.figures for name, line in lines.items()}, "ratios": _ratios(rounds), "cores": os.cpu_count()}
    _print(report)
    return report


def _given(config: FeedBenchmarkConfig) -> list[dict[str, Line]]:
    """The rounds' lines over the shard set that is given."""
    uri = Location.of(str(config.source)).uri
    return _rounds(_Meter(config, []), uri, _maker(config, config.large.view), None)


def _synthetic(config: FeedBenchmarkConfig, stack: ExitStack) -> list[dict[str, Line]]:
    """The rounds' lines over synthetic sets in a store that lives as long as the stack."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    store = ObjectStore(Path(folder) / "store")
    stack.callback(store.close)
    proxy = FaultProxy(store.endpoint)
    stack.callback(proxy.close)
    stack.enter_context(_environment(store.environment(proxy.endpoint) | KEEP_FREED_MEMORY))  # for all alike: `ray_session` sets it too
    boto3.session.Session().client("s3", endpoint_url=store.endpoint).create_bucket(Bucket="feed")
    large, small = (_put(config, kind, f"s3://feed/{name}") for name, kind in (("large", config.large), ("small", config.small)))
    assert storage.exists(Location(large)) and storage.exists(Location(small))
    return _rounds(_Meter(config, [*store.pids, proxy.pid]), large, _maker(config, config.large.view), (small, proxy))


def _rounds(meter: _Meter, uri: str, maker: MaskSampleMaker, late: tuple[str, FaultProxy] | None) -> list[dict[str, Line]]:
    config = meter.config
    with ray_session(int(2 * (config.feed_cpus + 1))):
        return [_round(meter, uri, maker, late, number == 0) for number in track(range(config.rounds), "rounds")]


def _round(meter: _Meter, uri: str, maker: MaskSampleMaker, late: tuple[str, FaultProxy] | None, everything: bool) -> dict[str, Line]:
    """The lines that are compared, by name: the loader, a worker, and one and two with late requests where a proxy makes them late; else all lines."""
    config = meter.config
    lines = [meter.loader("DataLoader", uri, maker)]
    for workers in (1, 2) if everything else (1,):
        lines += meter.workers(f"Ray Data, {_workers(workers)}", uri, maker, workers, config.steps, everything)
    if late is not None:
        small, proxy = late
        proxy.set(Weather(latency=config.latency))
        for workers in (1, 2):
            name = f"late requests, {_workers(workers)}"
            lines += meter.workers(name, small, _maker(config, config.small.view), workers, 3 * config.steps, everything)
        proxy.set(Weather())
    return {line.name: line for line in lines}


def _workers(number: int) -> str:
    return f"{number} worker{'s' * (number > 1)}"


def _ratios(rounds: Sequence[dict[str, Line]]) -> dict[str, dict[str, object]]:
    """Each ratio, the median of the rounds', with these and its target."""
    ratios: dict[str, dict[str, object]] = {}
    compared = [_compared(lines) for lines in rounds]
    for name in compared[0]:
        of_rounds, (bound, target) = [values[name] for values in compared], TARGETS[name]
        value = median(of_rounds)
        met = value <= target if bound == "at most" else value >= target
        ratios[name] = {"value": value, "rounds": of_rounds, "target": f"{bound} {target:g}", "met": met}
    return ratios


def _compared(lines: dict[str, Line]) -> dict[str, float]:
    def ratio(above: str, below: str, figure: str) -> float:
        return lines[above].figures[figure] / lines[below].figures[figure]

    values = {"cpu: Ray Data / DataLoader": ratio("Ray Data, 1 worker", "DataLoader", "cpu_seconds_a_sample")}
    if "late requests, 1 worker" in lines:
        values["late requests: 2 workers / 1 worker"] = ratio("late requests, 2 workers", "late requests, 1 worker", "samples_a_second")
    return values


def _print(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"Feeding training workers, {report['cores']} cores")
    for heading in ("what", "samples/s", "CPU ms a sample", "waiting"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, line in report["lines"].items():
        table.add_row(name, f"{line['samples_a_second']:.1f}", f"{line['cpu_seconds_a_sample'] * 1e3:.1f}", f"{line['waiting']:.0%}")
    console.print(table)
    for name, ratio in report["ratios"].items():
        rounds = ", ".join(f"{value:.2f}" for value in ratio["rounds"])
        console.print(f"{name}: {ratio['value']:.2f} (rounds: {rounds}; target: {ratio['target']}, {'met' if ratio['met'] else 'missed'})")
