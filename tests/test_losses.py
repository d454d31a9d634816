import math

import numpy as np
import pytest
import torch
from torch import Tensor

from uniovseg.losses import LossConfig, mask_generation_losses
from uniovseg.ops.points import uncertain_points
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Matches, View

SIDE, CELLS, LAYERS, PROMPTS, PREDICTIONS = 32, 16, 3, 3, 2
CONFIG = LossConfig(num_points=24)
HARD = LossConfig(num_points=24, iou_target="hard_iou_per_layer")
WHOLE = View(scale_xy=(1.0, 1.0), offset_xy=(0.0, 0.0), size=(SIDE, SIDE), valid_xyxy=(0.0, 0.0, SIDE, SIDE))
FLIPPED = View(scale_xy=(-1.25, 1.25), offset_xy=(40.0, -2.0), size=(SIDE, SIDE), valid_xyxy=(0.0, 0.0, SIDE, SIDE))
Outputs = list[tuple[Tensor, Tensor]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discs(count: int, size: tuple[int, int], seed: int) -> RunLengthMasks:
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[: size[0], : size[1]]
    drawn = [(xs - rng.uniform(5, size[1])) ** 2 + (ys - rng.uniform(5, size[0])) ** 2 < rng.uniform(6, 14) ** 2 for _ in range(count)]
    return RunLengthMasks.from_dense(torch.from_numpy(np.array(drawn).reshape(count, *size)))


MASKS = [discs(4, (36, 40), 0), discs(3, (30, 44), 1), discs(0, (32, 32), 2)]
VIEWS = [FLIPPED, WHOLE, WHOLE]
MATCHES = [
    Matches(torch.tensor([0, 1, 5]), torch.tensor([2, 0, 2]), torch.tensor([0.25, 0.5, 0.75])),
    Matches(torch.tensor([3, 4]), torch.tensor([1, 2]), torch.tensor([0.1, 0.9])),
    Matches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)),
]
BOXES = [Matches(match.predictions, match.masks, None) for match in MATCHES]


def outputs(images: int = 3) -> Outputs:
    made = []
    for layer in range(LAYERS):
        logits = 4 * torch.randn(images, PROMPTS, PREDICTIONS, CELLS, CELLS, generator=seeded(layer))
        ious = torch.rand(images, PROMPTS, PREDICTIONS, generator=seeded(10 + layer))
        made.append((logits.requires_grad_(), ious.requires_grad_()))
    return made


def losses(
    made: Outputs, matches: list[Matches] = MATCHES, config: LossConfig = CONFIG, normaliser: float = 5.0, first: int = 0
) -> dict[str, Tensor]:
    images = slice(first, first + len(matches))
    generators = [seeded(100 + image) for image in range(3)]
    return mask_generation_losses(config, made, matches, MASKS[images], VIEWS[images], generators[images], normaliser)


def bilinear(image: Tensor, x: float, y: float) -> float:
    x, y = x * image.shape[1] - 0.5, y * image.shape[0] - 0.5
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * float(image[row, column])
    return total


def value_at(mask: Tensor, view: View, x: float, y: float) -> float:
    """A dense mask's value under a point of the view, (x, y) in [0, 1]."""
    column = math.floor(x * view.size[1] * view.scale_xy[0] + view.offset_xy[0])
    row = math.floor(y * view.size[0] * view.scale_xy[1] + view.offset_xy[1])
    return float(mask[row, column]) if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] else 0.0


def dice_of(probs: list[float], truth: list[float]) -> float:
    return (2 * sum(p * t for p, t in zip(probs, truth, strict=True)) + 1) / (sum(probs) + sum(truth) + 1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_losses(made: Outputs, matches: list[Matches], config: LossConfig, normaliser: float) -> dict[str, float]:
    """Section 2.1 a layer, a pair and a point at a time; only the places of the points come from the tested code."""
    total = dict.fromkeys(("loss_mask", "loss_dice", "loss_iou"), 0.0)
    for image, match in enumerate(matches):
        dense, view = MASKS[image].to_dense(), VIEWS[image]
        mine = [[logits[image].detach().flatten(0, 1)[prediction] for logits, _ in made] for prediction in match.predictions]
        if not mine:
            continue
        flat = torch.stack([logits for of_pair in mine for logits in of_pair])
        points = iter(uncertain_points(flat, config.num_points, config.oversample, config.importance, seeded(100 + image)).tolist())
        for k, of_pair in enumerate(mine):
            mask = dense[match.masks[k]]
            cells = [(x, y, value_at(mask, view, (x + 0.5) / CELLS, (y + 0.5) / CELLS)) for y in range(CELLS) for x in range(CELLS)]
            for layer, logits in enumerate(of_pair):
                places = next(points)
                predicted = [bilinear(logits, x, y) for x, y in places]
                truth = [value_at(mask, view, x, y) for x, y in places]
                bce = [math.log1p(math.exp(-v)) if t else math.log1p(math.exp(v)) for v, t in zip(predicted, truth, strict=True)]
                total["loss_mask"] += sum(bce) / len(bce) / normaliser
                total["loss_dice"] += (1 - dice_of([sigmoid(v) for v in predicted], truth)) / normaliser
                if config.iou_target == "hard_iou_per_layer":
                    inside = [float(logits[y, x]) > 0 for x, y, _ in cells]
                    union = sum(a or bool(t) for a, (_, _, t) in zip(inside, cells, strict=True))
                    target = sum(a and bool(t) for a, (_, _, t) in zip(inside, cells, strict=True)) / max(union, 1)
                elif match.dice is not None:
                    target = float(match.dice[k])
                else:
                    target = dice_of([sigmoid(float(logits[y, x])) for x, y, _ in cells], [t for _, _, t in cells])
                error = abs(float(made[layer][1].detach()[image].flatten()[match.predictions[k]]) - target)
                total["loss_iou"] += 0.5 * error**2 / normaliser  # smooth L1 below 1
    return total


@pytest.mark.parametrize("config", [CONFIG, HARD], ids=["soft dice", "hard iou"])
@pytest.mark.parametrize("matches", [MATCHES, BOXES], ids=["points", "boxes"])
def test_equals_the_definition_point_by_point(config: LossConfig, matches: list[Matches]) -> None:
    made = outputs()
    found = losses(made, matches, config)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(slow_losses(made, matches, config, 5.0), rel=1e-4)


def test_unmatched_predictions_get_exactly_no_gradient_and_matched_ones_do_on_every_layer() -> None:
    made = outputs()
    CONFIG.weigh(losses(made)).backward()
    for logits, ious in made:
        assert logits.grad is not None
        assert ious.grad is not None
        for image, match in enumerate(MATCHES):
            matched = torch.zeros(PROMPTS * PREDICTIONS, dtype=torch.bool)
            matched[match.predictions] = True
            strength = logits.grad[image].flatten(0, 1).abs().sum((1, 2))
            assert torch.equal(strength > 0, matched)
            assert torch.equal(ious.grad[image].flatten() != 0, matched)


def test_without_pairs_the_loss_is_zero_and_connected_to_every_output() -> None:
    made = outputs()
    found = losses(made, [MATCHES[2]] * 3)
    total = CONFIG.weigh(found)
    total.backward()
    assert [value.item() for value in (*found.values(), total)] == [0.0] * 4
    for output in (tensor for layer in made for tensor in layer):
        assert output.grad is not None
        assert not output.grad.any()


def test_an_image_does_not_depend_on_its_batch() -> None:
    made = outputs()
    together = losses(made)
    alone = [losses([(logits[[image]], ious[[image]]) for logits, ious in made], [MATCHES[image]], first=image) for image in range(3)]
    for name, value in together.items():
        torch.testing.assert_close(value, sum((part[name] for part in alone), torch.zeros(())))


def test_the_normaliser_divides() -> None:
    made = outputs()
    whole, half = losses(made, normaliser=1.0), losses(made, normaliser=2.0)
    for name, value in whole.items():
        torch.testing.assert_close(value, 2 * half[name])


def test_labels_follow_the_view() -> None:
    match = Matches(torch.tensor([0]), torch.tensor([2]), torch.ones(1))
    truth = MASKS[0].sample(FLIPPED.cell_centres(SIDE, SIDE))[2].view(SIDE, SIDE).float()

    def loss(probs: Tensor) -> float:
        made = [((16 * probs - 8).view(1, 1, 1, SIDE, SIDE), torch.ones(1, 1, 1))]
        generators = [seeded()]
        found = mask_generation_losses(LossConfig(num_points=2000, importance=0), made, [match], MASKS[:1], [FLIPPED], generators, 1.0)
        assert found["loss_iou"] == 0
        return found["loss_dice"].item()

    assert loss(truth) < 0.06
    assert loss(truth.flip(1)) > 0.2


def test_half_precision_outputs_are_compared_in_float32() -> None:
    made = [(logits.detach().bfloat16(), ious.detach().bfloat16()) for logits, ious in outputs()]
    exact = [(logits.float(), ious.float()) for logits, ious in made]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(made)
    for name, value in losses(exact).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value)


def test_weights() -> None:
    parts = {"loss_mask": torch.tensor(1.0), "loss_dice": torch.tensor(10.0), "loss_iou": torch.tensor(100.0)}
    assert LossConfig().weigh(parts) == 2 * 1 + 10 + 100
    assert LossConfig(mask_weight=3, dice_weight=5, iou_weight=7).weigh(parts) == 3 + 50 + 700
