"""Training samples as Arrow tables, so that they can travel between processes without pickling or copying pixels."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from uniovseg.data.samples import collate
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import MaskBatch, MaskSample, View

Kind = TypeVar("Kind", bound=np.generic)

SAMPLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.large_binary()),
        ("view", pa.list_(pa.float64(), 8)),
        ("size", pa.list_(pa.int32(), 4)),
        ("ends", pa.large_binary()),
        ("splits", pa.large_binary()),
        ("boxes_xyxy", pa.large_binary()),
    ]
)
"""``view``: scale_xy, offset_xy, valid_xyxy; ``size``: (h, w) of the view, then of the source."""


def to_table(samples: Sequence[MaskSample], seeds: Sequence[int]) -> pa.Table:
    """Samples and their seeds as a table of `SAMPLE_SCHEMA`."""
    columns = {
        "key": [sample.key for sample in samples],
        "seed": list(seeds),
        "image": _binaries([sample.image for sample in samples]),
        "view": [[*sample.view.scale_xy, *sample.view.offset_xy, *sample.view.valid_xyxy] for sample in samples],
        "size": [[*sample.view.size, *sample.masks.size] for sample in samples],
        "ends": _binaries([sample.masks.ends.numpy() for sample in samples]),
        "splits": _binaries([sample.masks.splits.numpy() for sample in samples]),
        "boxes_xyxy": _binaries([sample.boxes_xyxy.numpy() for sample in samples]),
    }
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def _binaries(arrays: Sequence[NDArray[np.generic]]) -> pa.Array:
    """Each array's bytes as one value; copied once, into one buffer."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([array.nbytes for array in arrays])])
    data = np.empty(int(offsets[-1]), np.uint8)
    for array, begin, end in zip(arrays, offsets[:-1], offsets[1:], strict=True):
        data[begin:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def to_batch(table: pa.Table) -> MaskBatch:
    """A batch from a table of `SAMPLE_SCHEMA`."""
    table = table.combine_chunks()
    images, ends, splits, boxes = (table.column(name) for name in ("image", "ends", "splits", "boxes_xyxy"))
    samples, seeds = [], table.column("seed").to_pylist()
    for row, (key, view, size) in enumerate(zip(*(table.column(name).to_pylist() for name in ("key", "view", "size")), strict=True)):
        drawn = View(scale_xy=tuple(view[:2]), offset_xy=tuple(view[2:4]), size=(size[0], size[1]), valid_xyxy=tuple(view[4:]))
        masks = RunLengthMasks(
            torch.from_numpy(_values(ends[row], np.int64).copy()), torch.from_numpy(_values(splits[row], np.int64).copy()), (size[2], size[3])
        )
        samples.append(
            MaskSample(
                key=key,
                image=_values(images[row], np.uint8).reshape(3, size[0], size[1]),
                view=drawn,
                masks=masks,
                boxes_xyxy=torch.from_numpy(_values(boxes[row], np.float32).reshape(-1, 4).copy()),
            )
        )
    return collate(samples, seeds)


def _values(scalar: pa.Scalar, kind: type[Kind]) -> NDArray[Kind]:
    return np.frombuffer(scalar.as_buffer(), kind)
