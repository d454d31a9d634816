import math

import pytest
import torch
from torch import nn

from uniovseg.models import layers
from uniovseg.models.layers import Attention, LayerNorm2d, PositionEncoding, PromptAttention, pixel_centres


def same_weights(ours: Attention, dim: int, heads: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def test_attention_is_multihead_attention() -> None:
    torch.manual_seed(0)
    ours = Attention(16, 4)
    nn.init.normal_(ours.in_proj_bias)
    query, key, value = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    expected, _ = same_weights(ours, 16, 4)(query, key, value)
    torch.testing.assert_close(ours(query, key, value), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_prompt_attention_is_multihead_attention_with_the_mask_repeated(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batch, prompts, tokens, pixels, dim, heads = 2, 5, 3, 11, 16, 4
    monkeypatch.setattr(layers, "CHUNK_SCORES", 2 * batch * heads * tokens * pixels)  # two prompts a chunk: the last chunk is short
    ours = PromptAttention(dim, heads)
    nn.init.normal_(ours.in_proj_bias)
    query, key, value = torch.randn(batch, prompts, tokens, dim), torch.randn(batch, pixels, dim), torch.randn(batch, pixels, dim)
    visible = torch.rand(batch, prompts, pixels) > 0.6
    visible[..., 0] = True
    blocked = (~visible).repeat_interleave(tokens, dim=1).repeat_interleave(heads, dim=0)
    expected, _ = same_weights(ours, dim, heads)(query.flatten(1, 2), key, value, attn_mask=blocked)
    with torch.set_grad_enabled(grad):
        found = ours.forward_masked(query, key, value, visible)
    torch.testing.assert_close(found.flatten(1, 2), expected)


def test_prompt_attention_without_gradient_takes_no_more_scores_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    softmax = torch.Tensor.softmax

    def counted(scores: torch.Tensor, dim: int) -> torch.Tensor:
        sizes.append(scores.numel())
        return softmax(scores, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", counted)
    monkeypatch.setattr(layers, "CHUNK_SCORES", 1000)
    attention, visible = PromptAttention(16, 4), torch.ones(1, 20, 30, dtype=torch.bool)
    with torch.no_grad():
        attention.forward_masked(torch.randn(1, 20, 2, 16), torch.randn(1, 30, 16), torch.randn(1, 30, 16), visible)
    assert max(sizes) <= 1000
    assert sum(sizes) == 4 * 20 * 2 * 30


def test_hidden_pixels_have_no_influence() -> None:
    torch.manual_seed(0)
    attention = PromptAttention(16, 4)
    query, key, value = torch.randn(1, 2, 3, 16), torch.randn(1, 9, 16), torch.randn(1, 9, 16)
    visible = torch.zeros(1, 2, 9, dtype=torch.bool)
    visible[0, 0, :4] = visible[0, 1, 4:] = True
    before = attention.forward_masked(query, key, value, visible)
    key[:, 4:] += 1
    value[:, 4:] += 1
    after = attention.forward_masked(query, key, value, visible)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_layer_norm_2d_normalises_the_channels_of_each_pixel() -> None:
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    out = LayerNorm2d(6, eps=0.0)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 3, 4))


def test_random_encoding_is_the_formula() -> None:
    matrix = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    encoding = PositionEncoding(8, matrix)
    x, y = 0.3, 0.8
    found = encoding(torch.tensor([x, y]))
    for i in range(4):
        angle = 2 * math.pi * ((2 * x - 1) * matrix[0, i] + (2 * y - 1) * matrix[1, i])
        assert found[i] == pytest.approx(math.sin(angle), abs=1e-5)
        assert found[4 + i] == pytest.approx(math.cos(angle), abs=1e-5)
    assert set(encoding.state_dict()) == {"matrix"}


def test_sine_encoding_is_the_formula() -> None:
    encoding = PositionEncoding(8)
    found = encoding(torch.tensor([0.3, 0.8]))
    expected = [f(2 * math.pi * c * rate) for c in (0.3, 0.8) for f in (math.sin, math.cos) for rate in (1, 0.01)]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert not encoding.state_dict()


@pytest.mark.parametrize("matrix", [None, torch.ones(2, 4)])
def test_encoding_stays_exact_under_autocast(matrix: torch.Tensor | None) -> None:
    encoding, points = PositionEncoding(8, matrix), torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    expected = encoding(points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoding(points), expected)


def test_grid_encodes_pixel_centres_row_by_row() -> None:
    encoding = PositionEncoding(8)
    grid = encoding.grid((2, 4), torch.device("cpu"))
    assert grid.shape == (8, 8)
    torch.testing.assert_close(grid[4 + 1], encoding(torch.tensor([1.5 / 4, 1.5 / 2])))
    torch.testing.assert_close(pixel_centres((2, 4), torch.device("cpu"))[4 + 1], torch.tensor([1.5 / 4, 1.5 / 2]))
