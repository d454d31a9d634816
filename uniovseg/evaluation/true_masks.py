"""Ground-truth segments as masks: what is left of the task when the masks are perfect."""

import numpy as np
import torch
from numpy.typing import NDArray

from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import PanopticTruth


def truth_masks(truth: PanopticTruth) -> tuple[RunLengthMasks, NDArray[np.int64]]:
    """The segments that are no crowds and have pixels, as n masks, with their class indices [n]."""
    present = set(np.unique(truth.ids).tolist())
    kept = [segment for segment in truth.segments if not segment.is_crowd and segment.id in present]
    if not kept:
        return RunLengthMasks.empty((truth.ids.shape[0], truth.ids.shape[1])), np.zeros(0, np.int64)
    dense = np.stack([truth.ids == segment.id for segment in kept])
    return RunLengthMasks.from_dense(torch.from_numpy(dense)), np.array([segment.class_index for segment in kept], np.int64)
