"""Training samples as Arrow tables, so that they can travel between processes without pickling or copying pixels."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniovseg.data.regions import STRIDE
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import EntitySample, ImageEntities, MaskSample, PairSample, View

Kind = TypeVar("Kind", bound=np.generic)

IMAGE_FIELDS = [("key", pa.string()), ("image", pa.large_binary()), ("size", pa.list_(pa.int32(), 2))]
"""What every sample has: a view's pixels and its (h, w)."""

MASK_FIELDS = [("source_size", pa.list_(pa.int32(), 2)), ("ends", pa.large_binary()), ("splits", pa.large_binary())]
"""Run-length masks; ``source_size``: their (h, w)."""

VIEW_FIELD = ("view", pa.list_(pa.float64(), 8))
"""scale_xy, offset_xy and valid_xyxy of a view."""

ENTITIES_FIELD = ("entities", pa.list_(pa.string()))

MASK_SCHEMA = pa.schema([*IMAGE_FIELDS, VIEW_FIELD, *MASK_FIELDS, ("boxes_xyxy", pa.large_binary()), ("seed", pa.int64())])
PAIR_SCHEMA = pa.schema([*IMAGE_FIELDS, ("regions", pa.large_binary()), ENTITIES_FIELD])
ENTITY_SCHEMA = pa.schema([*IMAGE_FIELDS, VIEW_FIELD, ("source", pa.large_binary()), ("caption", pa.string()), ENTITIES_FIELD])


def mask_table(samples: Sequence[MaskSample]) -> pa.Table:
    """Samples as a table of `MASK_SCHEMA`."""
    boxes = _binaries([sample.boxes_xyxy.numpy() for sample in samples])
    columns = {"key": [sample.key for sample in samples], "boxes_xyxy": boxes, "seed": [sample.seed for sample in samples]}
    masks = [sample.masks for sample in samples]
    columns |= {
        "source_size": [each.size for each in masks],
        "ends": _binaries([each.ends.numpy() for each in masks]),
        "splits": _binaries([each.splits.numpy() for each in masks]),
    }
    return pa.table(columns | _image_columns(samples) | _view_column(samples), schema=MASK_SCHEMA)


def pair_table(samples: Sequence[PairSample]) -> pa.Table:
    """Samples as a table of `PAIR_SCHEMA`."""
    columns = {
        "key": [sample.key for sample in samples],
        "regions": _binaries([sample.regions.numpy() for sample in samples]),
        "entities": [sample.entities for sample in samples],
    }
    return pa.table(columns | _image_columns(samples), schema=PAIR_SCHEMA)


def entity_table(samples: Sequence[EntitySample]) -> pa.Table:
    """Samples as a table of `ENTITY_SCHEMA`."""
    records = [sample.record for sample in samples]
    columns = {name: [getattr(record, name) for record in records] for name in ("key", "caption", "entities")}
    columns |= {"source": [record.image for record in records]}
    return pa.table(columns | _image_columns(samples) | _view_column(samples), schema=ENTITY_SCHEMA)


def images(table: pa.Table) -> Tensor:
    """The pixels of all samples of a table, of one size: [B, 3, H, W] uint8 in the table's own memory, not to be written to."""
    _let_torch_warn()
    return torch.from_numpy(_images(table.combine_chunks()))


@functools.cache
def _let_torch_warn() -> None:
    """torch tells once a process that an array is not to be written to. Here nobody does, so nobody is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(b"0", np.uint8))


def mask_samples(table: pa.Table) -> list[MaskSample]:
    """The samples of a table of `MASK_SCHEMA`."""
    table = table.combine_chunks()
    keys, seeds = (table.column(name).to_pylist() for name in ("key", "seed"))
    boxes = [torch.from_numpy(_values(value, np.float32).reshape(-1, 4).copy()) for value in table.column("boxes_xyxy")]
    return [
        MaskSample(key=key, image=image, view=view, masks=masks, boxes_xyxy=tight, seed=seed)
        for key, image, view, masks, tight, seed in zip(keys, _images(table), _views(table), _masks(table), boxes, seeds, strict=True)
    ]


def pair_samples(table: pa.Table) -> list[PairSample]:
    """The samples of a table of `PAIR_SCHEMA`."""
    table = table.combine_chunks()
    keys, sizes, entities = (table.column(name).to_pylist() for name in ("key", "size", "entities"))
    regions = [
        torch.from_numpy(_values(cells, np.bool_).reshape(-1, height // STRIDE, width // STRIDE).copy())
        for cells, (height, width) in zip(table.column("regions"), sizes, strict=True)
    ]
    return [
        PairSample(key=key, image=image, regions=cells, entities=tuple(named))
        for key, image, cells, named in zip(keys, _images(table), regions, entities, strict=True)
    ]


def entity_samples(table: pa.Table) -> list[EntitySample]:
    """The samples of a table of `ENTITY_SCHEMA`."""
    table = table.combine_chunks()
    columns = (table.column(name).to_pylist() for name in ("key", "source", "caption", "entities"))
    records = [
        ImageEntities(key=key, image=source, caption=caption, entities=tuple(named)) for key, source, caption, named in zip(*columns, strict=True)
    ]
    return [EntitySample(record=record, image=image, view=view) for record, image, view in zip(records, _images(table), _views(table), strict=True)]


def _image_columns(samples: Sequence[MaskSample] | Sequence[PairSample] | Sequence[EntitySample]) -> dict[str, Any]:
    return {"image": _binaries([sample.image for sample in samples]), "size": [sample.image.shape[1:] for sample in samples]}


def _view_column(samples: Sequence[MaskSample] | Sequence[EntitySample]) -> dict[str, Any]:
    return {"view": [[*sample.view.scale_xy, *sample.view.offset_xy, *sample.view.valid_xyxy] for sample in samples]}


def _images(table: pa.Table) -> NDArray[np.uint8]:
    """The views' pixels, by row of a table in one chunk; all are of one size."""
    (height, width), *others = table.column("size").to_pylist()
    assert all(size == [height, width] for size in others), others
    column = table.column("image").chunk(0)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].reshape(-1, 3, height, width)


def _views(table: pa.Table) -> Iterator[View]:
    """The views, by row of a table."""
    for view, (height, width) in zip(*(table.column(name).to_pylist() for name in ("view", "size")), strict=True):
        yield View(scale_xy=tuple(view[:2]), offset_xy=tuple(view[2:4]), size=(height, width), valid_xyxy=tuple(view[4:]))


def _masks(table: pa.Table) -> Iterator[RunLengthMasks]:
    """The masks, by row of a table in one chunk."""
    sizes = table.column("source_size").to_pylist()
    for ends, splits, (height, width) in zip(table.column("ends"), table.column("splits"), sizes, strict=True):
        run_ends, run_splits = (torch.from_numpy(_values(values, np.int64).copy()) for values in (ends, splits))
        yield RunLengthMasks(run_ends, run_splits, (height, width))


def _binaries(arrays: Sequence[NDArray[np.generic]]) -> pa.Array:
    """Each array's bytes as one value; copied once, into one buffer."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([array.nbytes for array in arrays])])
    data = np.empty(int(offsets[-1]), np.uint8)
    for array, begin, end in zip(arrays, offsets[:-1], offsets[1:], strict=True):
        data[begin:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _values(scalar: pa.Scalar, kind: type[Kind]) -> NDArray[Kind]:
    return np.frombuffer(scalar.as_buffer(), kind)
