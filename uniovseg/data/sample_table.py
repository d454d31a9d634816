"""Training samples as Arrow tables, so that they can travel between processes without pickling or copying pixels."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import MaskSample, PairSample, View

Kind = TypeVar("Kind", bound=np.generic)

VIEW_FIELDS = [
    ("key", pa.string()),
    ("image", pa.large_binary()),
    ("view", pa.list_(pa.float64(), 8)),
    ("size", pa.list_(pa.int32(), 4)),
    ("ends", pa.large_binary()),
    ("splits", pa.large_binary()),
]
"""What every sample has. ``view``: scale_xy, offset_xy, valid_xyxy; ``size``: (h, w) of the view, then of the source."""

MASK_SCHEMA = pa.schema([*VIEW_FIELDS, ("boxes_xyxy", pa.large_binary()), ("seed", pa.int64())])
PAIR_SCHEMA = pa.schema([*VIEW_FIELDS, ("entities", pa.list_(pa.string()))])


def mask_table(samples: Sequence[MaskSample]) -> pa.Table:
    """Samples as a table of `MASK_SCHEMA`."""
    boxes = _binaries([sample.boxes_xyxy.numpy() for sample in samples])
    return pa.table(_view_columns(samples) | {"boxes_xyxy": boxes, "seed": [sample.seed for sample in samples]}, schema=MASK_SCHEMA)


def pair_table(samples: Sequence[PairSample]) -> pa.Table:
    """Samples as a table of `PAIR_SCHEMA`."""
    return pa.table(_view_columns(samples) | {"entities": [sample.entities for sample in samples]}, schema=PAIR_SCHEMA)


def mask_samples(table: pa.Table) -> list[MaskSample]:
    """The samples of a table of `MASK_SCHEMA`."""
    table = table.combine_chunks()
    boxes, seeds = table.column("boxes_xyxy"), table.column("seed").to_pylist()
    return [
        MaskSample(**fields, boxes_xyxy=torch.from_numpy(_values(boxes[row], np.float32).reshape(-1, 4).copy()), seed=seeds[row])
        for row, fields in enumerate(_view_rows(table))
    ]


def pair_samples(table: pa.Table) -> list[PairSample]:
    """The samples of a table of `PAIR_SCHEMA`."""
    table = table.combine_chunks()
    entities = table.column("entities").to_pylist()
    return [PairSample(**fields, entities=tuple(entities[row])) for row, fields in enumerate(_view_rows(table))]


def _view_columns(samples: Sequence[MaskSample] | Sequence[PairSample]) -> dict[str, Any]:
    return {
        "key": [sample.key for sample in samples],
        "image": _binaries([sample.image for sample in samples]),
        "view": [[*sample.view.scale_xy, *sample.view.offset_xy, *sample.view.valid_xyxy] for sample in samples],
        "size": [[*sample.view.size, *sample.masks.size] for sample in samples],
        "ends": _binaries([sample.masks.ends.numpy() for sample in samples]),
        "splits": _binaries([sample.masks.splits.numpy() for sample in samples]),
    }


def _view_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The fields that every sample has, by row of a table in one chunk."""
    images, ends, splits = (table.column(name) for name in ("image", "ends", "splits"))
    for row, (key, view, size) in enumerate(zip(*(table.column(name).to_pylist() for name in ("key", "view", "size")), strict=True)):
        drawn = View(scale_xy=tuple(view[:2]), offset_xy=tuple(view[2:4]), size=(size[0], size[1]), valid_xyxy=tuple(view[4:]))
        run_ends, run_splits = (torch.from_numpy(_values(column[row], np.int64).copy()) for column in (ends, splits))
        image = _values(images[row], np.uint8).reshape(3, size[0], size[1])
        yield {"key": key, "image": image, "view": drawn, "masks": RunLengthMasks(run_ends, run_splits, (size[2], size[3]))}


def _binaries(arrays: Sequence[NDArray[np.generic]]) -> pa.Array:
    """Each array's bytes as one value; copied once, into one buffer."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([array.nbytes for array in arrays])])
    data = np.empty(int(offsets[-1]), np.uint8)
    for array, begin, end in zip(arrays, offsets[:-1], offsets[1:], strict=True):
        data[begin:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _values(scalar: pa.Scalar, kind: type[Kind]) -> NDArray[Kind]:
    return np.frombuffer(scalar.as_buffer(), kind)
