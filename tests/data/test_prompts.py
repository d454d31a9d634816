import pytest
import torch

from uniovseg.data.prompts import draw_boxes


def boxes_of(count: int) -> torch.Tensor:
    return torch.arange(4.0 * count).reshape(count, 4)


@pytest.mark.parametrize("total", [1, 3, 5, 8])
def test_exactly_count_boxes_are_drawn(total: int) -> None:
    boxes, index = draw_boxes(boxes_of(total), 5, torch.Generator().manual_seed(0))
    assert boxes.shape == (5, 4) and torch.equal(boxes, boxes_of(total)[index])
    uses = torch.bincount(index, minlength=total)
    assert int(uses.max()) == -(-5 // total)  # a subset of more; fewer are repeated in turn
    assert int(uses.min()) == 5 // total


def test_each_box_of_many_is_drawn_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    uses = torch.bincount(torch.cat([draw_boxes(boxes_of(8), 4, generator)[1] for _ in range(400)]), minlength=8)
    assert bool(((uses - 200).abs() < 50).all())  # five standard deviations


def test_the_generator_decides() -> None:
    draw = [draw_boxes(boxes_of(50), 20, torch.Generator().manual_seed(seed))[1] for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_without_boxes_there_is_nothing_to_train_towards() -> None:
    boxes, index = draw_boxes(torch.zeros(0, 4), 3, torch.Generator().manual_seed(0))
    assert torch.equal(boxes, torch.zeros(3, 4)) and index.shape == (0,)
