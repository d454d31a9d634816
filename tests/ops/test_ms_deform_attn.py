import math

import torch
from torch import Tensor

from uniovseg.ops.ms_deform_attn import ms_deform_attn

SIZES = [(2, 3), (4, 6), (5, 7)]
HEADS, DIM, POINTS = 2, 3, 2


def inputs(batch: int = 2, queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in SIZES), HEADS, DIM, generator=generator, dtype=torch.float64)
    # From -0.2 to 1.2: some points fall outside a level, wholly or in part.
    locations = 1.4 * torch.rand(batch, queries, HEADS, len(SIZES), POINTS, 2, generator=generator, dtype=torch.float64) - 0.2
    weights = torch.rand(batch, queries, HEADS, len(SIZES), POINTS, generator=generator, dtype=torch.float64)
    return value, locations, weights


def read(maps: Tensor, x: float, y: float) -> Tensor:
    """Bilinear value at pixel coordinates (x, y) of [h, w, D], pixel centres at integers, zero outside."""
    total = torch.zeros(maps.shape[-1], dtype=maps.dtype)
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            if 0 <= row < maps.shape[0] and 0 <= column < maps.shape[1]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * maps[row, column]
    return total


def loop(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries = locations.shape[:2]
    out = torch.zeros(batch, queries, HEADS, DIM, dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for m in range(HEADS):
                begin = 0
                for level, (height, width) in enumerate(SIZES):
                    maps = value[b, begin : begin + height * width, m].view(height, width, DIM)
                    begin += height * width
                    for p in range(POINTS):
                        x, y = locations[b, q, m, level, p].tolist()
                        out[b, q, m] += weights[b, q, m, level, p] * read(maps, x * width - 0.5, y * height - 0.5)
    return out.flatten(2)


def test_equals_a_direct_loop() -> None:
    value, locations, weights = inputs()
    torch.testing.assert_close(ms_deform_attn(value, SIZES, locations, weights), loop(value, locations, weights))


def test_gradients_are_those_of_finite_differences() -> None:
    value, locations, weights = (tensor.requires_grad_() for tensor in inputs(batch=1, queries=2))
    assert torch.autograd.gradcheck(lambda v, x, w: ms_deform_attn(v, SIZES, x, w), (value, locations, weights))


def test_a_pixel_centre_gives_the_pixel_itself() -> None:
    value, locations, weights = inputs(batch=1, queries=1)
    height, width = SIZES[1]
    weights = torch.zeros_like(weights)
    weights[..., 1, 0] = 1
    locations[0, 0, :, 1, 0] = torch.tensor([(2 + 0.5) / width, (3 + 0.5) / height], dtype=torch.float64)
    pixel = SIZES[0][0] * SIZES[0][1] + 3 * width + 2
    torch.testing.assert_close(ms_deform_attn(value, SIZES, locations, weights)[0, 0], value[0, pixel].flatten())
