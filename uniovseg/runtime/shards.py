"""Writing a shard set in parts: each part commits alone, and the manifest, written last, merges the commits.

A part is one task's share of a source. It writes its Parquet file, then its rejected samples, then a small commit file: only with that does it count.
A part that is tried again writes the same names over; a run that is started again skips the parts that are committed.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.data.shards import MANIFEST, Contents, Manifest, ModelUse, ShardInfo, contents_of, rejects_table
from uniovseg.data.shards import to_table as image_masks_table
from uniovseg.errors import ConfigError
from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.metrics import count_part
from uniovseg.storage import Location

RecordT = TypeVar("RecordT")

ToTable = Callable[[Sequence[RecordT], Sequence[str], Sequence[int]], pa.Table]
"""Records, with the file and the offset that each came from, as a table; for example `uniovseg.data.shards.to_table`."""

REJECTS = "rejects.parquet"

COUNTS_OF_USE = ("replies", "bad_replies", "prompt_tokens", "completion_tokens", "cost")


class PartRange(Config):
    """What a part reads, and what it is called."""

    name: str = Field(..., description="name of its shard and commit: the source file and the first offset")
    source: str = Field(..., description="URI of the file it reads")
    begin: int = Field(..., ge=0, description="first byte of a tar, or first image of an annotation file")
    end: int = Field(..., ge=0, description="end of the range, exclusive")


class Commit(Contents):
    """What a finished part wrote."""

    part: PartRange = Field(..., description="the part")
    shard: ShardInfo | None = Field(..., description="the shard; null when no sample was kept")
    models: dict[str, ModelUse] = Field({}, description="language models that were asked, by what for")
    rejects: dict[str, int] = Field(..., description="rejected samples by reason")


class _ShardWriter(Generic[RecordT]):
    """Collects records into row groups of one Parquet file in memory; a part is small enough, and its file appears whole or not at all."""

    def __init__(self, source: str, rows_per_group: int, to_table: ToTable[RecordT]) -> None:
        self.source, self.rows_per_group, self._to_table = source, rows_per_group, to_table
        self.buffer = io.BytesIO()
        self.rows: list[int] = []
        self.contents = Contents()
        self._group: list[tuple[int, RecordT]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, offset: int, record: RecordT) -> None:
        self._group.append((offset, record))
        if len(self._group) == self.rows_per_group:
            self._flush()

    def _flush(self) -> None:
        offsets, records = [offset for offset, _ in self._group], [record for _, record in self._group]
        table = self._to_table(records, [self.source] * len(records), offsets)
        if self._writer is None:  # images are compressed already; run lengths shrink to a third
            self._writer = pq.ParquetWriter(self.buffer, table.schema, compression={"counts.list.element": "zstd"}, use_dictionary=False)
        self._writer.write_table(table, row_group_size=len(records))
        self.rows.append(len(records))
        self.contents = _sum([self.contents, contents_of(table)])
        self._group.clear()

    def close(self) -> bytes:
        """The finished file; empty when nothing was added."""
        if self._group:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        return self.buffer.getvalue()


def write_part(part: PartRange, samples: Iterable[tuple[int, ImageMasks | Rejected]], output: Location, rows_per_group: int) -> Commit:
    """`write_records` for image-mask records."""
    return write_records(part, samples, output, rows_per_group, image_masks_table)


def write_records(
    part: PartRange,
    samples: Iterable[tuple[int, RecordT | Rejected]],
    output: Location,
    rows_per_group: int,
    to_table: ToTable[RecordT],
    models: Callable[[], dict[str, ModelUse]] = dict,
) -> Commit:
    """Stream a part's samples, given with their offsets, into its shard and its rejects, and commit it.

    Args:
        part: what the samples are of.
        samples: offset and record, or rejection.
        output: the shard set's folder.
        rows_per_group: rows of a Parquet row group.
        to_table: makes tables of the records.
        models: what was asked of language models for the samples; called when they are exhausted.
    """
    writer = _ShardWriter(part.source, rows_per_group, to_table)
    rejects: list[Rejected] = []
    for offset, sample in samples:
        if isinstance(sample, Rejected):
            rejects.append(sample)
        else:
            writer.add(offset, sample)
    data = writer.close()
    shard = None
    if data:
        shard = ShardInfo(name=f"shards/{part.name}.parquet", rows=tuple(writer.rows), bytes=len(data))
        storage.write_bytes(output / shard.name, data)
    if rejects:
        storage.write_bytes(_rejects_of(output, part), _parquet(rejects_table(rejects)))
    reasons = Counter(item.reason for item in rejects)
    commit = Commit(part=part, shard=shard, models=models(), rejects=dict(sorted(reasons.items())), **writer.contents.model_dump())
    storage.write_bytes(output / f"commits/{part.name}.json", commit.model_dump_json().encode())
    count_part(output.name, samples=sum(writer.rows), pairs=commit.pairs, rejects=commit.rejects)
    return commit


def check_settings(output: Location, settings: Mapping[str, str], *, begun: bool = True) -> None:
    """Refuse an output that was begun with other settings: ConfigError; remember those of a new one, or of one that holds nothing yet (not `begun`)."""
    location = output / "settings.json"
    if not begun or not storage.exists(location):
        storage.write_bytes(location, json.dumps(dict(settings), indent=2).encode())
        return
    before = json.loads(storage.read_bytes(location))
    if changed := [f"{name}: {value}" for name, value in settings.items() if before.get(name) != value]:
        raise ConfigError("the output was begun with other settings", seen="; ".join(changed), fix="give another output folder")


def read_commits(output: Location) -> dict[str, Commit]:
    """All commits of an output folder, by part name."""
    found = [Commit.model_validate_json(storage.read_bytes(item)) for item in storage.list_files(output / "commits", ".json")]
    return {commit.part.name: commit for commit in found}


def write_manifest(output: Location, commits: Sequence[Commit], settings: Mapping[str, str] | None = None) -> Manifest:
    """Join the parts' rejects into one file and write the manifest, last. The order of `commits` is that of the shards.

    `settings` are those that the rows depend on, for people to read.
    """
    rejected = [pq.read_table(pa.BufferReader(storage.read_bytes(_rejects_of(output, commit.part)))) for commit in commits if commit.rejects]
    if rejected:
        storage.write_bytes(output / REJECTS, _parquet(pa.concat_tables(rejected)))
    shards = tuple(commit.shard for commit in commits if commit.shard is not None)
    reasons = Counter[str]()
    for commit in commits:
        reasons.update(commit.rejects)
    manifest = Manifest(
        shards=shards,
        samples=sum(sum(shard.rows) for shard in shards),
        settings=dict(settings or {}),
        models=_sum_models(commits),
        sources=tuple(dict.fromkeys(commit.part.source for commit in commits)),
        rejects=dict(sorted(reasons.items())),
        rejects_file=REJECTS if rejected else None,
        **_sum(commits).model_dump(),
    )
    storage.write_bytes(output / MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def _sum(items: Sequence[Contents]) -> Contents:
    return Contents(**{name: sum(getattr(item, name) for item in items) for name in Contents.model_fields})


def _sum_models(commits: Sequence[Commit]) -> dict[str, ModelUse]:
    """The commits' uses of models, added up; each use is of the same model and prompt in all of them."""
    totals: dict[str, ModelUse] = {}
    for commit in commits:
        for name, use in commit.models.items():
            added = {key: getattr(use, key) + getattr(totals[name], key) for key in COUNTS_OF_USE} if name in totals else {}
            totals[name] = use.model_copy(update=added)
    return totals


def _rejects_of(output: Location, part: PartRange) -> Location:
    return output / f"rejects/{part.name}.parquet"


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
