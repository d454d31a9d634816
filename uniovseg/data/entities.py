"""Image-entities records: how they are stored in a shard set (`uniovseg.data.shards`), and how they become samples that are matched online."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from uniovseg.data.images import decode_image
from uniovseg.data.shards import ShardSet
from uniovseg.data.views import ViewConfig, random_view, stack_images
from uniovseg.records import EntityBatch, EntitySample, ImageEntities
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


def make_entity_sample(record: ImageEntities, view_config: ViewConfig, seed: int) -> EntitySample:
    """Draw a view of a record: the same one that `uniovseg.data.pairs.make_pair_sample` draws of the image's pairs. Raises DataError for no image."""
    view, image = random_view(view_config, decode_image(record.image), np.random.default_rng(seed))
    return EntitySample(record=record, image=image, view=view)


def collate(samples: Sequence[EntitySample], images: Tensor | None = None) -> EntityBatch:
    """Samples of one view size as a batch; `images`: their images where they are stacked already, [B, 3, H, W]."""
    return EntityBatch(
        records=tuple(sample.record for sample in samples),
        images=stack_images([sample.image for sample in samples]) if images is None else images,
        views=tuple(sample.view for sample in samples),
    )
