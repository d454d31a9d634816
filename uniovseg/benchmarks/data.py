"""What a training sample costs: run-length masks and one affine view, against decoding and resizing every mask.

Synthetic images of SA-1B's size, about a hundred blobby, nested masks each. Every line decodes the image with the same decoder to the same reduced
size and resizes it with the same call; no line but the last has colour jitter. One core.

The same samples are then fed through Ray Data, as a training worker takes them, and the CPU time of all of Ray's processes is counted.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import Field
from rich.console import Console
from rich.table import Table

from uniovseg.config import Config
from uniovseg.data.images import decode_image, shrink_for
from uniovseg.data.makers import MaskSampleMaker
from uniovseg.data.samples import MaskSampleConfig, make_mask_sample
from uniovseg.data.shards import MANIFEST, Manifest, ShardInfo, ShardSet, to_record, to_table
from uniovseg.data.views import ViewConfig, draw_view, render
from uniovseg.records import ImageMasks, MaskSample, View
from uniovseg.runtime.datasets import PlannedRows, ray_batches
from uniovseg.runtime.session import ray_session


class DataBenchmarkConfig(Config):
    """What is measured, and how often."""

    output: str = Field("runs/benchmark_data", description="folder of report.json")
    seed: int = Field(0, ge=0, description="seed of the synthetic samples and of the views")
    samples: int = Field(16, ge=1, description="synthetic images")
    masks: int = Field(100, ge=40, description="masks an image")
    height: int = Field(1500, ge=64, description="height of the images, pixels")
    width: int = Field(2250, ge=64, description="width of the images, pixels")
    points: int = Field(12544, ge=1, description="points whose labels line a2 looks up, a mask")
    repeats: int = Field(3, ge=1, description="rounds over all lines; a line's time is its fastest round")
    ray_groups: int = Field(8, ge=1, description="row groups of the set that is fed through Ray Data, each all samples anew; a window of the order")
    ray_epochs: int = Field(3, ge=1, description="times that this set is fed through Ray Data, after a first one that is not counted")


TARGETS = {"a / c": ("at most", 1.5), "b / a": ("at least", 15.0), "b / a2": ("at least", 10.0), "a / a by Ray Data": ("at least", 0.8)}


def synthetic_image(height: int, width: int, rng: np.random.Generator) -> bytes:
    """A JPEG (quality 91) with photograph-like texture: noise whose strength grows with its wavelength; about 0.7 MB at 1500 x 2250."""
    image = np.full((height, width, 3), 120, np.float32)
    for wavelength in (1, 2, 8, 32, 128):
        coarse = (max(2, height // wavelength), max(2, width // wavelength), 3)
        noise = rng.standard_normal(coarse, dtype=np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * (2.0 + wavelength**0.75)
    encoded = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 91])[1]
    return encoded.tobytes()


def synthetic_mask(height: int, width: int, centre_xy: NDArray[np.float64], radius: float, rng: np.random.Generator) -> bytes:
    """Compressed COCO counts of a blob: a circle of `radius` pixels whose outline is bent by waves of 2 to 24 periods."""
    angles = np.linspace(0, 2 * np.pi, max(24, int(radius)), endpoint=False)
    periods = np.arange(2, 25)
    waves = np.cos(angles[:, None] * periods + rng.uniform(0, 2 * np.pi, len(periods))) * rng.normal(0, 0.5, len(periods)) / periods
    outline = centre_xy + radius * (1 + waves.sum(1, keepdims=True)).clip(0.2) * np.stack([np.cos(angles), np.sin(angles)], 1)
    columns = np.zeros((width, height), np.uint8)  # drawn transposed: run lengths go down the columns
    cv2.fillPoly(columns, [np.rint(outline[:, ::-1]).astype(np.int32)], 1)
    counts: bytes = coco_mask.encode(columns.T)["counts"]
    return counts


def synthetic_record(config: DataBenchmarkConfig, index: int) -> ImageMasks:
    """Sample `index`: radii log-uniform from 2 % to 45 % of the height; half of the masks lie inside an earlier, larger one."""
    rng = np.random.default_rng([config.seed, index])
    counts: list[bytes] = []
    places: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(config.masks):
        radius = config.height * float(np.exp(rng.uniform(np.log(0.02), np.log(0.45))))
        centre = rng.uniform(0, 1, 2) * (config.width, config.height)
        if places and rng.random() < 0.5:
            parent, outer = places[rng.integers(len(places))]
            radius = min(radius, 0.6 * outer)
            centre = parent + rng.uniform(-0.4, 0.4, 2) * outer
        places.append((centre, radius))
        counts.append(synthetic_mask(config.height, config.width, centre, radius, rng))
    return ImageMasks(
        key=f"benchmark_{index}",
        image=synthetic_image(config.height, config.width, rng),
        height=config.height,
        width=config.width,
        counts=tuple(counts),
        predicted_iou=(0.9,) * config.masks,
        stability_score=(0.9,) * config.masks,
    )


def write_shards(folder: Path, records: Sequence[ImageMasks], groups: int = 1) -> ShardSet:
    """A shard set of one file, as ingest writes it, in which each row group holds all the records."""
    folder.mkdir(exist_ok=True)
    table = to_table([*records] * groups, ["benchmark"] * len(records) * groups, list(range(len(records) * groups)))
    file = folder / "benchmark.parquet"
    pq.write_table(table, file, compression={"counts.list.element": "zstd"}, use_dictionary=False, row_group_size=len(records))
    shard = ShardInfo(name=file.name, rows=(len(records),) * groups, bytes=file.stat().st_size)
    masks = groups * sum(len(record.counts) for record in records)
    manifest = Manifest(shards=(shard,), samples=len(table), masks=masks, sources=("benchmark",), rejects={})
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return ShardSet(folder)


@dataclass(frozen=True)
class Lines:
    """The measured ways to make all samples of a shard set once; each is called without arguments."""

    shards: ShardSet
    records: list[ImageMasks]
    config: DataBenchmarkConfig

    view = ViewConfig(colour_jitter=False)
    sample = MaskSampleConfig()

    def ours(self, view: ViewConfig = view) -> Iterator[MaskSample]:
        """(a) From Parquet bytes to views and run-length masks."""
        table = self.shards.read_group(0)
        for row in range(len(table)):
            yield make_mask_sample(to_record(table, row), view, self.sample, self.config.seed + row)

    def ours_with_labels(self) -> None:
        """(a2) The same, and the labels of each mask at points of its own."""
        generator = torch.Generator().manual_seed(self.config.seed)
        for sample in self.ours():
            points = torch.rand(len(sample.masks), self.config.points, 2, generator=generator) * torch.tensor(sample.view.size[::-1])
            sample.masks.sample(sample.view.to_source(points), torch.arange(len(sample.masks)))

    def usual(self) -> None:
        """(b) Every mask decoded by pycocotools, resized (nearest) and cropped by OpenCV, and the image too."""
        for row, record in enumerate(self.records):
            view = self._view(record, row)
            self._image(record, view)
            for counts in record.counts:
                mask = coco_mask.decode({"size": [record.height, record.width], "counts": counts})
                _resize_and_crop(mask, view)

    def floor(self) -> None:
        """(c) The view of the image alone."""
        for row, record in enumerate(self.records):
            self._image(record, self._view(record, row))

    def _view(self, record: ImageMasks, row: int) -> View:
        """The view that `ours` draws for this record."""
        return draw_view(self.view, record.height, record.width, np.random.default_rng(self.config.seed + row))

    def _image(self, record: ImageMasks, view: View) -> NDArray[np.uint8]:
        shrink = shrink_for(record.image, record.height, record.width, min(abs(view.scale_xy[0]), view.scale_xy[1]))
        return render(decode_image(record.image, shrink), view, shrink)


def _resize_and_crop(mask: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """What a drawn view shows of a mask [H, W], by nearest neighbour, with padding 0."""
    (x_scale, y_scale), (x_offset, y_offset) = view.scale_xy, view.offset_xy
    left = x_offset / abs(x_scale) - (view.valid_xyxy[2] if x_scale < 0 else 0)
    whole = (round(mask.shape[1] / abs(x_scale)), round(mask.shape[0] / y_scale))
    resized = cv2.resize(mask, whole, interpolation=cv2.INTER_NEAREST)
    shown = resized[round(y_offset / y_scale) :, round(left) :][: view.size[0], : view.size[1]]
    padded = np.zeros(view.size, np.uint8)
    padded[: shown.shape[0], : shown.shape[1]] = shown[:, ::-1] if x_scale < 0 else shown
    return padded


def _exhaust(samples: Iterator[MaskSample]) -> None:
    """Make every sample and keep none, as a training process does in the long run."""
    deque(samples, maxlen=0)


def measure(lines: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """CPU seconds of each line's fastest round: on one core the time it takes, whatever else the machine is doing."""
    seconds = dict.fromkeys(lines, float("inf"))
    for _ in range(repeats):
        for name, line in lines.items():
            since = time.process_time()
            line()
            seconds[name] = min(seconds[name], time.process_time() - since)
    return seconds


def measure_ray(shards: ShardSet, config: DataBenchmarkConfig) -> float:
    """CPU seconds a sample, of this process and all of Ray's, when line (a)'s samples come through Ray Data; Ray's start and the first epoch are left out."""
    maker = MaskSampleMaker(Lines.view, Lines.sample, config.seed)
    batch = min(4, config.samples)
    steps = shards.manifest.samples // batch
    groups = tuple(group.rows for group in shards.groups)
    rows = PlannedRows(shards.location.uri, groups, config.seed, batch_size=batch, window_groups=len(groups), rank=0, world_size=1, parts=1)
    with ray_session(1):
        batches = ray_batches(rows, maker, 0, steps * (1 + config.ray_epochs))
        deque(islice(batches, steps), maxlen=0)
        since = cpu_seconds()
        made = sum(len(batch.keys) for batch in batches)
        return (cpu_seconds() - since) / made


def cpu_seconds(not_counted: Sequence[int] = ()) -> float:
    """CPU time so far of this process and of all that descend from it and live, but for those whose ids are given."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [this, *this.children(recursive=True)] if process.pid not in not_counted)


def run(config: DataBenchmarkConfig) -> dict[str, Any]:
    """Measure all lines on one core, print them as a table, and return them: seconds a sample, ratios, targets, and what the samples are like."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), [synthetic_record(config, index) for index in range(config.samples)])
        lines = Lines(shards, list(shards.records()), config)
        named: dict[str, Callable[[], object]] = {
            "a": lambda: _exhaust(lines.ours()),
            "a2": lines.ours_with_labels,
            "b": lines.usual,
            "c": lines.floor,
            "a with colour jitter": lambda: _exhaust(lines.ours(ViewConfig(colour_jitter=True))),
        }
        seconds = {name: value / config.samples for name, value in measure(named, config.repeats).items()}
        seconds["a by Ray Data"] = measure_ray(write_shards(Path(folder) / "ray", lines.records, config.ray_groups), config)
        report = {"seconds_a_sample": seconds, "ratios": _ratios(seconds), "samples": _describe(lines)}
    _print(report)
    return report


def _ratios(seconds: dict[str, float]) -> dict[str, dict[str, object]]:
    ratios: dict[str, dict[str, object]] = {}
    for name, (bound, target) in TARGETS.items():
        above, below = name.split(" / ")
        value = seconds[above] / seconds[below]
        met = value <= target if bound == "at most" else value >= target
        ratios[name] = {"value": value, "target": f"{bound} {target:g}", "met": met}
    return ratios


def _describe(lines: Lines) -> dict[str, float]:
    samples = list(lines.ours())
    counts = [mask for record in lines.records for mask in record.counts]
    return {
        "samples": len(samples),
        "masks_a_sample": len(counts) / len(samples),
        "masks_kept_a_sample": sum(len(sample.masks) for sample in samples) / len(samples),
        "runs_a_mask": sum(len(sample.masks.ends) for sample in samples) / sum(len(sample.masks) for sample in samples),
        "rle_bytes_a_mask": sum(map(len, counts)) / len(counts),
        "jpeg_bytes": sum(len(record.image) for record in lines.records) / len(samples),
    }


_MEANING = {
    "a": "ours: Parquet bytes to an image view and run-length masks",
    "a2": "a, and labels at points of 40 masks",
    "b": "the usual way: decode, resize and crop every mask",
    "c": "the floor: decode and resize the image alone",
    "a with colour jitter": "a with SSD colour jitter",
    "a by Ray Data": "a through Ray Data, the CPU time of all its processes",
}


def _print(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="Making a training sample, one core", caption=", ".join(f"{key} {value:.4g}" for key, value in report["samples"].items()))
    for heading in ("line", "what", "ms a sample"):
        table.add_column(heading, justify="right" if heading.startswith("ms") else "left")
    for name, value in report["seconds_a_sample"].items():
        table.add_row(name, _MEANING[name], f"{value * 1e3:.1f}")
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}: {ratio['value']:.2f} (target: {ratio['target']}, {'met' if ratio['met'] else 'missed'})")
