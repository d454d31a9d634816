"""Shard sets: Parquet files of records and the manifest that says which of them count. Here too: how image-mask records are stored.

Readers trust only the manifest, which is written last; a folder without one is not a shard set. JPEG bytes and run lengths are stored as they came.
Other records are stored by modules of their own (`uniovseg.data.entities`, `uniovseg.data.pairs`), in sets of the same kind. Row groups are small,
so that the plan of samples can shuffle them and a rank reads little that it does not need.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.errors import DataError
from uniovseg.records import ImageMasks, Rejected
from uniovseg.storage import Location

RecordT = TypeVar("RecordT")

MANIFEST = "manifest.json"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("image", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.list_(pa.binary())),
        ("predicted_iou", pa.list_(pa.float32())),
        ("stability_score", pa.list_(pa.float32())),
    ]
)
REJECTS_SCHEMA = pa.schema([("key", pa.string()), ("source", pa.string()), ("offset", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])


class ShardInfo(Config):
    """One Parquet file of a shard set."""

    name: str = Field(..., description="path below the shard set")
    rows: tuple[int, ...] = Field(..., description="rows of each row group")
    bytes: int = Field(..., ge=0, description="size of the file")


class ModelUse(Config):
    """What a language model was asked for a shard set, and what that took."""

    model: str = Field(..., description="name of the model, as its endpoint knows it")
    prompt: str = Field(..., description="name of the prompt file")
    prompt_hash: str = Field(..., description="hash of the prompt file")
    replies: int = Field(0, ge=0, description="replies that were read, bad ones too; also those of an earlier run, from the cache")
    bad_replies: int = Field(0, ge=0, description="replies that were not what was asked for")
    prompt_tokens: int = Field(0, ge=0, description="tokens of all requests that were replied to")
    completion_tokens: int = Field(0, ge=0, description="tokens of all replies")
    cost: float = Field(0.0, ge=0, description="of these tokens at the prices that were given, US dollars")


class Contents(Config):
    """What rows hold, counted; 0 in sets without such things."""

    masks: int = Field(0, ge=0, description="masks in all rows")
    entities: int = Field(0, ge=0, description="entities in all rows")
    pairs: int = Field(0, ge=0, description="pairs of a mask and an entity in all rows")


class Manifest(Contents):
    """What a shard set holds."""

    format: Literal[1] = Field(1, description="version of the layout")
    shards: tuple[ShardInfo, ...] = Field(..., description="the files, in order")
    samples: int = Field(..., ge=0, description="rows in all files")
    settings: dict[str, str] = Field({}, description="settings that the rows depend on")
    models: dict[str, ModelUse] = Field({}, description="language models that were asked, by what for")
    sources: tuple[str, ...] = Field(..., description="what was ingested")
    rejects: dict[str, int] = Field(..., description="rejected samples by reason")
    rejects_file: str | None = Field(None, description="Parquet file of the rejected samples, below the shard set")


def to_table(records: Sequence[ImageMasks], sources: Sequence[str], offsets: Sequence[int]) -> pa.Table:
    """Records as an Arrow table of `SCHEMA`, with the file and the offset that each came from."""
    columns = {
        "key": [record.key for record in records],
        "source": list(sources),
        "offset": list(offsets),
        "image": [record.image for record in records],
        "height": [record.height for record in records],
        "width": [record.width for record in records],
        "counts": [record.counts for record in records],
        "predicted_iou": [record.predicted_iou for record in records],
        "stability_score": [record.stability_score for record in records],
    }
    return pa.table(columns, schema=SCHEMA)


def to_record(table: pa.Table, row: int) -> ImageMasks:
    """One row of a table of `SCHEMA`."""
    cells = {name: table.column(name)[row].as_py() for name in SCHEMA.names if name not in ("source", "offset")}
    lists = {name: tuple(cells[name]) for name in ("counts", "predicted_iou", "stability_score")}
    return ImageMasks(**(cells | lists))


def rejects_table(rejects: Sequence[Rejected]) -> pa.Table:
    """Rejected samples as an Arrow table of `REJECTS_SCHEMA`."""
    return pa.Table.from_pylist([{name: getattr(item, name) for name in REJECTS_SCHEMA.names} for item in rejects], schema=REJECTS_SCHEMA)


MOST_FOOTERS = 64
"""Files whose footers a `ShardSet` remembers, so that each of their row groups is a single request."""


class GroupRef(NamedTuple):
    """A row group: index of its shard in the manifest, index in the file, rows."""

    shard: int
    group: int
    rows: int


class ShardSet:
    """A shard set as its manifest describes it; picklable, opens files when asked.

    Args:
        uri: the folder with the manifest.

    Raises:
        DataError: there is no manifest, or it cannot be understood.
    """

    def __init__(self, uri: str | Path | Location) -> None:
        self.location = Location.of(uri)
        if not storage.exists(self.location / MANIFEST):
            raise DataError(
                "not a shard set: no manifest", seen=self.location.uri, allowed=f"a folder with {MANIFEST}",
                fix="make one with jobs/ingest.py (masks), jobs/refine.py (entities) or jobs/match.py (pairs)",
            )  # fmt: skip
        try:
            self.manifest = Manifest.model_validate_json(storage.read_bytes(self.location / MANIFEST))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise DataError(f"the manifest cannot be understood: {key}: {first['msg']}", seen=self.location.uri) from error
        self.groups = tuple(GroupRef(shard, group, rows) for shard, info in enumerate(self.manifest.shards) for group, rows in enumerate(info.rows))
        self._files: dict[int, pads.ParquetFileFragment] = {}

    @property
    def layout(self) -> str:
        """16 hexadecimal digits that tell apart sets whose row groups differ in number, order, or rows."""
        listed = [[info.name, info.rows] for info in self.manifest.shards]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}  # a pickled filesystem forgets how it retries

    def read_group(self, index: int) -> pa.Table:
        """The rows of row group `index` (into `groups`) as an Arrow table of `SCHEMA`."""
        ref = self.groups[index]
        info = self.manifest.shards[ref.shard]
        location = self.location / info.name

        def read() -> pa.Table:
            if ref.shard not in self._files:
                filesystem, path = location.filesystem()
                if len(self._files) >= MOST_FOOTERS:
                    self._files.clear()
                # As its size is known, nobody asks the store for it.
                self._files[ref.shard] = pads.ParquetFileFormat().make_fragment(path, filesystem, file_size=info.bytes)
            return self._files[ref.shard].subset(row_group_ids=[ref.group]).to_table(use_threads=False)

        try:
            return storage.with_retries(read, f"reading {location.uri}")
        except pa.ArrowInvalid as error:
            raise DataError("the shard is damaged", seen=f"{location.uri}: {' '.join(str(error).split())[:200]}", fix="make the set anew") from error

    def records(self, limit: int | None = None) -> Iterator[ImageMasks]:
        """The first `limit` records (None: all) of an image-mask set, in the manifest's order."""
        return self.read(to_record, limit)

    def read(self, to_record: Callable[[pa.Table, int], RecordT], limit: int | None = None) -> Iterator[RecordT]:
        """The first `limit` records (None: all) in the manifest's order, made by `to_record` from a table and a row's number.

        Raises:
            DataError: the set holds records of another kind.
        """
        left = self.manifest.samples if limit is None else limit
        for index, ref in enumerate(self.groups):
            if left <= 0:
                return
            table = self.read_group(index)
            for row in range(min(ref.rows, left)):
                yield self.record(to_record, table, row)
            left -= ref.rows

    def record(self, to_record: Callable[[pa.Table, int], RecordT], table: pa.Table, row: int) -> RecordT:
        """A row of a row group of this set, made by `to_record`. Raises DataError where the rows lack a column: the set holds records of another kind."""
        try:
            return to_record(table, row)
        except KeyError as error:
            raise DataError("the shard set holds other records", seen=f"{self.location.uri}: {error.args[0]}") from error

    def rejects(self) -> pa.Table:
        """The rejected samples, an Arrow table of `REJECTS_SCHEMA`."""
        if self.manifest.rejects_file is None:
            return rejects_table([])
        return pq.read_table(pa.BufferReader(storage.read_bytes(self.location / self.manifest.rejects_file)))


COUNTED = {"masks": "counts", "entities": "entities", "pairs": "pair_costs"}
"""The list columns whose elements `Contents` counts."""


def contents_of(table: pa.Table) -> Contents:
    """What a table of records holds, by the list columns it has."""
    present = {name: table.column(column) for name, column in COUNTED.items() if column in table.column_names}
    return Contents(**{name: sum(len(chunk.flatten()) for chunk in column.chunks) for name, column in present.items()})
