import pytest
import torch
from torch import Tensor

from uniovseg.models.layers import PositionEncoding
from uniovseg.models.prompt_encoder import PromptEncoder

DIM, MASKS = 8, 4


@pytest.fixture
def encoder() -> PromptEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PromptEncoder(DIM, MASKS, PositionEncoding(DIM, torch.randn(2, DIM // 2)))


@pytest.fixture
def mask_features() -> Tensor:
    """Of a view of 16 x 24 pixels."""
    return torch.randn(1, DIM, 4, 6, generator=torch.Generator().manual_seed(0))


def test_point_tokens_by_hand(encoder: PromptEncoder, mask_features: Tensor) -> None:
    x, y = 10.0, 6.0  # the centre of the cell in column 2, row 1
    tokens = encoder.points(torch.tensor([[[x, y]]]), mask_features)
    assert tokens.shape == (1, 1, 2 + MASKS + 1, DIM)
    for corner, shift in enumerate((-2, 2)):
        place = encoder.position(torch.tensor([(x + shift) / 24, (y + shift) / 16]))
        kind = encoder.corner_embed[0, corner] + encoder.point_embed[0, 0] + encoder.label_embed.weight[1]
        torch.testing.assert_close(tokens[0, 0, corner], place + kind + mask_features[0, :, 1, 2])
    assert torch.equal(tokens[0, 0, 2:], encoder.mask_embed[0])


def test_box_tokens_by_hand(encoder: PromptEncoder, mask_features: Tensor) -> None:
    box = torch.tensor([4.0, 2.0, 16.0, 10.0])  # its centre is (10, 6)
    tokens = encoder.boxes(box.view(1, 1, 4), mask_features)
    for corner, (x, y) in enumerate(((4, 2), (16, 10))):
        place = encoder.position(torch.tensor([x / 24, y / 16]))
        kind = encoder.corner_embed[0, corner] + encoder.box_embed[0, 0]
        torch.testing.assert_close(tokens[0, 0, corner], place + kind + mask_features[0, :, 1, 2])
    assert torch.equal(tokens[0, 0, 2:], encoder.mask_embed[0])


def test_a_set_is_its_points_with_their_labels_and_one_mask_token(encoder: PromptEncoder, mask_features: Tensor) -> None:
    points = torch.tensor([[3.0, 5.0], [20.0, 9.0], [11.0, 15.0]])
    labels = torch.tensor([1, 0, 1])
    tokens = encoder.point_sets(points.view(1, 1, 3, 2), labels.view(1, 1, 3), mask_features)
    assert tokens.shape == (1, 1, 2 * 3 + 1, DIM)
    alone = encoder.points(points[None], mask_features)[0, :, :2] - encoder.label_embed.weight[1]
    expected = alone + encoder.label_embed.weight[labels][:, None]
    torch.testing.assert_close(tokens[0, 0, :6].view(3, 2, DIM), expected)
    assert torch.equal(tokens[0, 0, 6], encoder.mask_embed[0, 0])


def test_bool_labels_are_taken(encoder: PromptEncoder, mask_features: Tensor) -> None:
    points, labels = torch.tensor([[[[3.0, 5.0], [20.0, 9.0]]]]), torch.tensor([[[1, 0]]])
    assert torch.equal(encoder.point_sets(points, labels.bool(), mask_features), encoder.point_sets(points, labels, mask_features))
