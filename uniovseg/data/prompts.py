"""Prompts drawn from ground truth in training."""

import torch
from torch import Tensor


def draw_boxes(boxes_xyxy: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exactly `count` box prompts: a random subset of more, fewer repeated in turn (method: 2.1).

    Args:
        boxes_xyxy: [n, 4].
        count: boxes wanted.
        generator: random stream, on any device.

    Returns:
        boxes [count, 4], and the index [count] of each among the n. Without any box: zeros, and an empty index (nothing to train towards).
    """
    total = len(boxes_xyxy)
    if total == 0:
        return boxes_xyxy.new_zeros(count, 4), torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    order = torch.randperm(total, generator=generator, device=generator.device).to(boxes_xyxy.device)
    index = order[torch.arange(count, device=boxes_xyxy.device) % total]
    return boxes_xyxy[index], index
