"""Ingest: SA-1B tars or COCO sets to a shard set, by Ray Data.

The source is cut into parts (a byte range of a tar, a range of images). A part is one read task of our datasource: it streams its samples, writes one
Parquet shard, then its rejects, then a small commit file, and returns a summary row. A part counts when its commit file is there; a retry overwrites,
a re-run skips what is committed, and the manifest, written last, merges the commits.
"""

import io
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import Field
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.data.coco import CocoImage, load_image, read_annotations
from uniovseg.data.sa1b import parse_sample
from uniovseg.data.shards import MANIFEST, Manifest, ShardInfo, masks_of, rejects_table, to_table
from uniovseg.data.tar import iter_samples
from uniovseg.errors import ConfigError, DataError
from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.session import ray_session
from uniovseg.storage import Location


class IngestConfig(Config):
    """From source files to a shard set."""

    source: str = Field(..., description="sa1b: a tar, or a folder of tars; coco_*: the annotation JSON; any URI that pyarrow opens")
    output: str = Field(..., description="folder of the shard set")
    format: Literal["sa1b", "coco_panoptic", "coco_instances"] = Field("sa1b", description="what the source is")
    images: str | None = Field(None, description="coco_*: folder of the images; null: images/ beside the JSON")
    panoptic: str | None = Field(None, description="coco_panoptic: folder of the PNGs; null: beside the JSON, with its name")
    verify: Literal["header", "decode"] = Field("header", description="header: check image markers and size; decode: decode every image too")
    rows_per_group: int = Field(64, ge=1, description="rows of a Parquet row group")
    part_bytes: int = Field(256 * 1024**2, ge=1024, description="bytes of a tar that one task reads; COCO: 64 images a task")
    cpus: int = Field(2, ge=1, description="CPUs of a local cluster")


class PartSource(Protocol):
    """A part of the source: its `name` (that of its shard), its `source` URI, its range, and its samples."""

    name: str
    source: str
    begin: int
    end: int

    def samples(self, verify: str) -> Iterator[tuple[int, ImageMasks | Rejected]]:
        """Offset and record, or rejection, of each sample."""


@dataclass(frozen=True, slots=True)
class TarPart:
    """The samples that a byte range of a tar owns."""

    name: str
    source: str
    begin: int
    end: int
    size: int

    def samples(self, verify: str) -> Iterator[tuple[int, ImageMasks | Rejected]]:
        """Parse sample by sample; damage to the archive itself ends the part with one rejection."""
        filesystem, path = Location(self.source).filesystem()

        def open_at(offset: int) -> Any:
            file = filesystem.open_input_file(path)
            return pa.BufferedInputStream(file.get_stream(offset, self.size - offset), 8 << 20)

        last = self.begin
        try:
            for sample in iter_samples(open_at, self.size, self.begin, self.end):
                last = sample.end
                yield sample.offset, parse_sample(sample.files, sample.key, self.source, sample.offset, decode=verify == "decode")
        except DataError as error:
            yield last, Rejected(key="", source=self.source, offset=last, reason="truncated_tar", detail=str(error)[:300])


@dataclass(frozen=True, slots=True)
class CocoPart:
    """A range of a COCO set's images."""

    name: str
    source: str
    begin: int
    end: int
    images: tuple[CocoImage, ...]

    def samples(self, verify: str) -> Iterator[tuple[int, ImageMasks | Rejected]]:
        """Read image by image; the offset is the image's number in the annotation file."""
        for number, image in enumerate(self.images, start=self.begin):
            yield number, load_image(image, decode=verify == "decode")


class Commit(Config):
    """What a finished part wrote."""

    name: str = Field(..., description="the part's name")
    source: str = Field(..., description="URI of the file it read")
    begin: int = Field(..., description="first byte (or image) of the part")
    end: int = Field(..., description="end of the part, exclusive")
    shard: ShardInfo | None = Field(..., description="the shard; null when every sample was rejected")
    masks: int = Field(..., description="masks in the shard")
    rejects: dict[str, int] = Field(..., description="rejected samples by reason")


def plan_parts(config: IngestConfig) -> list[PartSource]:
    """Cut the source into parts. Raises DataError when there is nothing to read."""
    if config.format == "sa1b":
        location = Location.of(config.source)
        tars = [location] if location.uri.endswith(".tar") else storage.list_files(location, ".tar")
        if not tars:
            raise DataError("no tars to ingest", seen=location.uri, allowed="a .tar file, or a folder with .tar files")
        parts: list[PartSource] = []
        for tar in tars:
            size = storage.size(tar)
            for begin in range(0, max(size, 1), config.part_bytes):
                parts.append(TarPart(_part_name(tar, begin), tar.uri, begin, min(begin + config.part_bytes, size), size))
        return parts
    location = Location.of(config.source)
    images = config.images or location.uri.rpartition("/")[0] + "/images"
    found = read_annotations(location.uri, images, config.panoptic)
    if not found:
        raise DataError("the annotation file names no images", seen=location.uri)
    chunks = range(0, len(found), 64)
    return [CocoPart(_part_name(location, i), location.uri, i, min(i + 64, len(found)), tuple(found[i : i + 64])) for i in chunks]


def _part_name(location: Location, begin: int) -> str:
    stem = location.name.rpartition(".")[0] or location.name
    return f"{stem}-{zlib.crc32(location.uri.encode()):08x}-{begin:014d}"


def ingest_part(part: PartSource, output: Location, verify: str, rows_per_group: int) -> Commit:
    """Stream a part's samples into its shard, write its rejects, and commit it."""
    buffer, rows, masks = io.BytesIO(), list[int](), 0
    rejects: list[Rejected] = []
    group: list[tuple[int, ImageMasks]] = []
    writer: pq.ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer, masks
        if not group:
            return
        table = to_table([record for _, record in group], [part.source] * len(group), [offset for offset, _ in group])
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression={"counts.list.element": "zstd"}, use_dictionary=False)
        writer.write_table(table, row_group_size=len(group))
        rows.append(len(group))
        masks += masks_of(table)
        group.clear()

    for offset, record in part.samples(verify):
        if isinstance(record, Rejected):
            rejects.append(record)
            continue
        group.append((offset, record))
        if len(group) == rows_per_group:
            flush()
    flush()
    shard = None
    if writer is not None:
        writer.close()
        shard = ShardInfo(name=f"shards/{part.name}.parquet", rows=tuple(rows), bytes=buffer.tell())
        storage.write_bytes(output / shard.name, buffer.getvalue())
    if rejects:
        sink = io.BytesIO()
        pq.write_table(rejects_table(rejects), sink)
        storage.write_bytes(output / f"rejects/{part.name}.parquet", sink.getvalue())
    reasons = {reason: sum(item.reason == reason for item in rejects) for reason in sorted({item.reason for item in rejects})}
    commit = Commit(name=part.name, source=part.source, begin=part.begin, end=part.end, shard=shard, masks=masks, rejects=reasons)
    storage.write_bytes(output / f"commits/{part.name}.json", commit.model_dump_json().encode())
    return commit


class PartsSource(Datasource):  # type: ignore[misc]
    """A Ray datasource with one read task a part; a task ingests its part and gives one row, its commit."""

    def __init__(self, parts: Sequence[PartSource], output: Location, verify: str, rows_per_group: int) -> None:
        super().__init__()
        self._parts, self._output, self._verify, self._rows_per_group = parts, output, verify, rows_per_group

    def estimate_inmemory_data_size(self) -> int:
        """The rows are small: a commit each."""
        return 1024 * len(self._parts)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None) -> list[ReadTask]:
        """One task a part, whatever parallelism is asked for."""
        output, verify, rows_per_group = self._output, self._verify, self._rows_per_group

        def task(part: PartSource) -> ReadTask:
            def read() -> Iterator[pa.Table]:
                yield pa.table({"commit": [ingest_part(part, output, verify, rows_per_group).model_dump_json()]})

            metadata = BlockMetadata(num_rows=1, size_bytes=1024, input_files=[part.source], exec_stats=None)
            return ReadTask(read, metadata, schema=pa.schema([("commit", pa.string())]))

        return [task(part) for part in self._parts]


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Ingest what is not yet committed, then write the manifest; returns the counts.

    Raises:
        ConfigError: the output holds commits of another cut of the source.
    """
    started = time.perf_counter()
    output = Location.of(config.output)
    parts = plan_parts(config)
    commits = read_commits(output)
    planned = {part.name: (part.begin, part.end) for part in parts}
    for name, commit in commits.items():
        if planned.get(name) != (commit.begin, commit.end):
            raise ConfigError(
                "the output holds parts of another source or another part_bytes", seen=name, fix="give another output folder, or the same source and part_bytes"
            )
    left = [part for part in parts if part.name not in commits]
    if left:
        with ray_session(config.cpus), Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            bar = progress.add_task("ingesting parts", total=len(parts), completed=len(parts) - len(left))
            rows = ray.data.read_datasource(PartsSource(left, output, config.verify, config.rows_per_group), override_num_blocks=len(left))
            for row in rows.iter_rows():
                commit = Commit.model_validate_json(row["commit"])
                commits[commit.name] = commit
                progress.advance(bar)
    manifest = merge(output, [commits[part.name] for part in parts])
    rejected = sum(manifest.rejects.values())
    return {
        "samples": manifest.samples, "masks": manifest.masks, "rejected": rejected, "rejects": manifest.rejects, "shards": len(manifest.shards),
        "parts": len(parts), "parts_already_done": len(parts) - len(left), "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def read_commits(output: Location) -> dict[str, Commit]:
    """All commits of an output folder, by part name."""
    found = [Commit.model_validate_json(storage.read_bytes(item)) for item in storage.list_files(output / "commits", ".json")]
    return {commit.name: commit for commit in found}


def merge(output: Location, commits: Sequence[Commit]) -> Manifest:
    """Merge the parts' rejects into one file and write the manifest, last."""
    reasons: dict[str, int] = {}
    tables = []
    for commit in commits:
        for reason, count in commit.rejects.items():
            reasons[reason] = reasons.get(reason, 0) + count
        if commit.rejects:
            tables.append(pq.read_table(io.BytesIO(storage.read_bytes(output / f"rejects/{commit.name}.parquet"))))
    if tables:
        sink = io.BytesIO()
        pq.write_table(pa.concat_tables(tables), sink)
        storage.write_bytes(output / "rejects.parquet", sink.getvalue())
    shards = tuple(commit.shard for commit in commits if commit.shard)
    manifest = Manifest(
        shards=shards,
        samples=sum(sum(shard.rows) for shard in shards),
        masks=sum(commit.masks for commit in commits),
        sources=tuple(dict.fromkeys(commit.source for commit in commits)),
        rejects=dict(sorted(reasons.items())),
        rejects_file="rejects.parquet" if tables else None,
    )
    storage.write_bytes(output / MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest
