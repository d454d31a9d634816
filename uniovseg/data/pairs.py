"""Pairs of a mask and an entity: how they are stored, and how they become training samples of stage 2."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from uniovseg.data.images import decode_image
from uniovseg.data.regions import view_regions
from uniovseg.data.views import ViewConfig, random_view, source_window, stack_images
from uniovseg.errors import DataError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImagePairs, PairBatch, PairSample, View

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("image", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("counts", pa.list_(pa.binary())),
        ("quality", pa.list_(pa.float32())),
        ("entities", pa.list_(pa.string())),
        ("sizes", pa.list_(pa.int32())),
        ("costs", pa.list_(pa.float32())),
        ("pairs", pa.list_(pa.int64())),
        ("pair_costs", pa.list_(pa.float32())),
    ]
)
"""One row an image. ``costs`` and ``pairs`` are flattened, last dimension fastest."""


FLAT = ("quality", "costs", "pairs", "pair_costs")
PLAIN = ("key", "image", "height", "width", "counts", "entities", "sizes")


def to_table(records: Sequence[ImagePairs], sources: Sequence[str], offsets: Sequence[int]) -> pa.Table:
    """Records as an Arrow table of `SCHEMA`, with the file and the offset that each came from."""
    columns = {name: [getattr(record, name) for record in records] for name in PLAIN}
    columns |= {name: [getattr(record, name).reshape(-1) for record in records] for name in FLAT}
    return pa.table(columns | {"source": list(sources), "offset": list(offsets)}, schema=SCHEMA)


def to_record(table: pa.Table, row: int) -> ImagePairs:
    """One row of a table of `SCHEMA`."""
    cells = {name: table.column(name)[row].as_py() for name in (*PLAIN, *FLAT)}
    counts, entities, sizes = (tuple(cells[name]) for name in ("counts", "entities", "sizes"))
    return ImagePairs(
        key=cells["key"],
        image=cells["image"],
        height=cells["height"],
        width=cells["width"],
        counts=counts,
        quality=np.array(cells["quality"], np.float32),
        entities=entities,
        sizes=sizes,
        costs=np.array(cells["costs"], np.float32).reshape(len(sizes), len(counts), len(entities)),
        pairs=np.array(cells["pairs"], np.int64).reshape(-1, 2),
        pair_costs=np.array(cells["pair_costs"], np.float32),
    )


def make_pair_sample(record: ImagePairs, view_config: ViewConfig, seed: int) -> PairSample:
    """Draw a view of a record and keep the pairs whose mask can be seen in it, in the record's order.

    Raises DataError when the image or a mask cannot be read.
    """
    pixels = decode_image(record.image)
    if pixels.shape[:2] != (record.height, record.width):
        raise DataError("the image is not of the size of its masks", seen=pixels.shape[:2], allowed=(record.height, record.width))
    view, image = random_view(view_config, pixels, np.random.default_rng(seed))
    regions, entities = visible_pairs(record, view)
    return PairSample(key=record.key, image=image, regions=regions, entities=entities)


def visible_pairs(record: ImagePairs, view: View) -> tuple[Tensor, tuple[str, ...]]:
    """The pairs whose mask can be seen in a view, in the record's order: their k regions [k, H/32, W/32] bool of the view, and k entities."""
    masks = RunLengthMasks.from_counts([record.counts[mask] for mask, _ in record.pairs], (record.height, record.width))
    seen = np.flatnonzero(masks.visible(source_window(view))[0].numpy())
    return view_regions(masks.select(torch.from_numpy(seen)), view), tuple(record.entities[record.pairs[pair, 1]] for pair in seen)


def collate(samples: Sequence[PairSample], images: Tensor | None = None) -> PairBatch:
    """Samples of one view size as a batch; `images`: their images where they are stacked already, [B, 3, H, W]."""
    return PairBatch(
        keys=tuple(sample.key for sample in samples),
        images=stack_images([sample.image for sample in samples]) if images is None else images,
        regions=tuple(sample.regions for sample in samples),
        entities=tuple(sample.entities for sample in samples),
    )
