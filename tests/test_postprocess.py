import math

import pytest
import torch
from torch import Tensor

from uniovseg import postprocess
from uniovseg.data.views import fit_view
from uniovseg.postprocess import ProposalConfig, dense_masks, filter_proposals, masks_from_logits, resize_logits, stability, valid_cells

LANDSCAPE, CANVAS, CELLS = (40, 64), 64, 32
VIEW = fit_view(CANVAS, *LANDSCAPE)  # the lower 24 of 64 rows are padding: 12 of the 32 rows of the logits


def boxes(*boxes_xyxy: tuple[int, int, int, int]) -> Tensor:
    """Logits [k, CELLS, CELLS] of +4 in boxes of cells, -4 elsewhere."""
    logits = torch.full((len(boxes_xyxy), CELLS, CELLS), -4.0)
    for mask, (x0, y0, x1, y1) in zip(logits, boxes_xyxy, strict=True):
        mask[y0:y1, x0:x1] = 4.0
    return logits


APART = boxes((0, 0, 8, 8), (10, 0, 18, 8), (20, 0, 28, 8))


def kept(logits: Tensor, ious: list[float], **config: float) -> list[float]:
    """The predicted IoUs (each given once) of what survives."""
    masks, quality = filter_proposals(ProposalConfig.model_validate(config), logits, torch.tensor(ious), VIEW, LANDSCAPE)
    assert len(masks) == len(quality)
    assert masks.size == LANDSCAPE
    return [round(value, 4) for value in quality.tolist()]


def test_the_threshold_is_the_releases_after_its_second_sigmoid() -> None:
    assert 1 / (1 + math.exp(-ProposalConfig().min_predicted_iou)) == pytest.approx(0.65, abs=1e-4)
    assert kept(APART, [0.618, 0.62, 0.9]) == [0.9, 0.62]
    assert kept(APART, [0.618, 0.62, 0.9], min_predicted_iou=0.0) == [0.9, 0.62, 0.618]


def test_nothing_survives() -> None:
    assert kept(APART, [0.1, 0.2, 0.3]) == []
    assert kept(boxes(), []) == []


def test_a_worse_mask_inside_a_better_one_goes_and_a_better_part_stays_beside_the_whole() -> None:
    nested = boxes((0, 0, 20, 16), (4, 4, 10, 10))
    assert kept(nested, [0.9, 0.8]) == [0.9]
    assert kept(nested, [0.8, 0.9]) == [0.9, 0.8]


def test_padding_counts_in_no_overlap_and_makes_no_mask() -> None:
    only_padding = boxes((0, 20, 32, 32), (0, 0, 8, 8))
    assert kept(only_padding, [0.9, 0.8]) == [0.8]
    assert kept(only_padding, [0.9, 0.8], max_proposals=1) == [0.8]
    overlap_below = boxes((0, 8, 16, 32), (0, 16, 16, 32))  # of the second, 4 rows are image, all inside the first: IoU 4 / 12
    assert kept(overlap_below, [0.8, 0.9]) == [0.9, 0.8]  # on the whole canvas the IoU would be 16 / 24


def test_best_first_and_at_most_so_many() -> None:
    assert kept(APART, [0.7, 0.9, 0.8], max_proposals=2) == [0.9, 0.8]


def test_small_masks_are_dropped_by_source_pixels() -> None:
    logits = boxes((0, 0, 8, 8), (10, 0, 12, 2))
    _, both = filter_proposals(ProposalConfig(), logits, torch.tensor([0.9, 0.8]), VIEW, LANDSCAPE)
    assert len(both) == 2
    assert kept(logits, [0.9, 0.8], min_area=100) == [0.9]


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = torch.tensor([2.0, 1.5, 0.5, -0.5, -2.0, -2.0]).view(1, 2, 3)
    assert stability(logits).tolist() == [0.5]
    assert stability(torch.full((1, 2, 3), -2.0)).tolist() == [0.0]
    unstable = APART.clone()
    unstable[1] = unstable[1] / 8  # within the two thresholds everywhere: 0 / all
    assert kept(unstable, [0.9, 0.8, 0.7], min_stability=0.9) == [0.9, 0.7]


@pytest.mark.parametrize("size", [(40, 64), (90, 50), (13, 13)])
def test_logits_are_read_bilinearly_at_the_source_pixel_centres(size: tuple[int, int]) -> None:
    logits = torch.randn(2, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    view = fit_view(CANVAS, *size)
    resized = resize_logits(logits, view, size)
    assert resized.shape == (2, *size)
    for row, column in [(0, 0), (1, 5), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)]:
        x, y = (view.to_view(torch.tensor([column + 0.5, row + 0.5])) * CELLS / CANVAS - 0.5).clamp(0, CELLS - 1).tolist()
        x0, y0 = math.floor(x), math.floor(y)
        x1, y1 = min(x0 + 1, CELLS - 1), min(y0 + 1, CELLS - 1)
        top = logits[:, y0, x0] * (1 - x + x0) + logits[:, y0, x1] * (x - x0)
        bottom = logits[:, y1, x0] * (1 - x + x0) + logits[:, y1, x1] * (x - x0)
        torch.testing.assert_close(resized[:, row, column], top * (1 - y + y0) + bottom * (y - y0), rtol=1e-4, atol=1e-4)


def test_masks_at_source_resolution_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    whole = masks_from_logits(logits, VIEW, LANDSCAPE)
    assert torch.equal(whole.to_dense(), resize_logits(logits, VIEW, LANDSCAPE) > 0)
    monkeypatch.setattr(postprocess, "PIXELS_AT_ONCE", 1)
    assert masks_from_logits(logits, VIEW, LANDSCAPE) == whole


def test_a_box_of_cells_becomes_the_box_of_pixels_it_covers() -> None:
    masks = masks_from_logits(boxes((4, 6, 12, 10)), VIEW, LANDSCAPE)
    assert masks.boxes_xyxy().tolist() == [[8, 12, 24, 20]]


def test_masks_are_cut_at_the_source_pixel_and_not_at_the_cell() -> None:
    everywhere = torch.full((3, CELLS, CELLS), 4.0)
    limits = torch.tensor([[3.0, 5.0, 21.0, 18.0], [0.0, 0.0, 64.0, 40.0], [50.0, 30.0, 51.0, 31.0]])
    assert masks_from_logits(everywhere, VIEW, LANDSCAPE, limits).boxes_xyxy().tolist() == limits.tolist()
    assert dense_masks(everywhere, VIEW, LANDSCAPE, limits).flatten(1).sum(1).tolist() == [18 * 13, 64 * 40, 1]
    masks, quality = filter_proposals(ProposalConfig(), everywhere, torch.tensor([0.8, 0.7, 0.9]), VIEW, LANDSCAPE, limits)
    assert masks.boxes_xyxy().tolist() == [limits[2].tolist(), limits[0].tolist(), limits[1].tolist()]  # none in a better one
    assert quality.tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize(("height", "width"), [(10, 1300), (1300, 10), (1, 5000), (100, 128), (77, 50)])
def test_cells_whose_centre_shows_image_and_at_least_one_of_the_thinnest(height: int, width: int) -> None:
    view = fit_view(128, height, width)
    found = valid_cells(view, (32, 32), torch.device("cpu"))
    centres = torch.arange(32) * 4 + 2.0
    rows, columns = ((centres < high) for high in (view.valid_xyxy[3], view.valid_xyxy[2]))
    rows[0] = columns[0] = True
    assert torch.equal(found, rows[:, None] & columns)


def test_a_very_thin_image_keeps_its_masks() -> None:
    logits = torch.ones(2, 32, 32)
    masks, quality = filter_proposals(ProposalConfig(), logits, torch.tensor([0.8, 0.9]), fit_view(128, 10, 1300), (10, 1300))
    assert quality.tolist() == pytest.approx([0.9]) and int(masks.area()[0]) == 13_000
