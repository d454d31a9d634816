"""How image-entities records are stored in a shard set (`uniovseg.data.shards`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from uniovseg.data.shards import ShardSet
from uniovseg.records import ImageEntities
from uniovseg.storage import Location

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("image", pa.large_binary()),
        ("caption", pa.string()),
        ("entities", pa.list_(pa.string())),
    ]
)


def to_table(records: Sequence[ImageEntities], sources: Sequence[str], offsets: Sequence[int]) -> pa.Table:
    """Records as an Arrow table of `SCHEMA`, with the file and the offset that each came from."""
    columns = {name: [getattr(record, name) for record in records] for name in ("key", "image", "caption", "entities")}
    return pa.table(columns | {"source": list(sources), "offset": list(offsets)}, schema=SCHEMA)


def to_record(table: pa.Table, row: int) -> ImageEntities:
    """One row of a table of `SCHEMA`."""
    key, image, caption, entities = (table.column(name)[row].as_py() for name in ("key", "image", "caption", "entities"))
    return ImageEntities(key=key, image=image, caption=caption, entities=tuple(entities))


def read_entities(uri: str | Path | Location, limit: int | None = None) -> Iterator[ImageEntities]:
    """The first `limit` records (None: all) of an image-entities shard set, in the manifest's order. Raises DataError when it is none."""
    return ShardSet(uri).read(to_record, limit)
