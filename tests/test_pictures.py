"""Pictures: masks where they are, tiles where they belong, files in RGB."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from uniovseg.errors import StorageError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pictures import draw_masks, save_picture, tile


def squares() -> RunLengthMasks:
    """Two squares in an image of 40 x 60, and a mask of no pixel."""
    dense = torch.zeros(3, 40, 60, dtype=torch.bool)
    dense[0, 5:15, 5:15] = True
    dense[1, 20:35, 30:55] = True
    return RunLengthMasks.from_dense(dense)


def test_each_mask_has_a_colour_and_the_rest_is_untouched() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = draw_masks(image, squares())
    assert drawn.shape == image.shape
    assert (image == 100).all()
    dense = squares().to_dense().numpy()
    inside = [dense[0].copy(), dense[1].copy()]
    colours = [{tuple(int(v) for v in drawn[y, x]) for y, x in zip(*np.nonzero(mask), strict=True)} - {(100, 100, 100)} for mask in inside]
    assert colours[0] and colours[1] and not colours[0] & colours[1]
    assert all((drawn[mask] != 100).any(axis=1).all() for mask in inside)
    near = np.zeros((40, 60), bool)
    for mask in inside:
        ys, xs = np.nonzero(mask)
        near[ys.min() - 1 : ys.max() + 2, xs.min() - 1 : xs.max() + 2] = True  # the outline may lie one pixel outside
    assert (drawn[~near] == 100).all()


def test_opacity_one_hides_and_no_masks_change_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    hidden = draw_masks(noise, squares(), opacity=1.0)
    assert len(np.unique(hidden[7:13, 7:13].reshape(-1, 3), axis=0)) == 1
    same = draw_masks(noise, RunLengthMasks.empty((40, 60)))
    assert np.array_equal(same, noise)
    assert same is not noise


def test_labels_are_written_inside_their_masks_on_an_enlarged_picture() -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    dense = torch.zeros(2, 80, 120, dtype=torch.bool)
    dense[0, 10:70, 5:10], dense[0, 10:40, 60:119] = True, True  # the middle of its box is outside
    masks = RunLengthMasks.from_dense(dense)
    plain, labelled = draw_masks(image, masks), draw_masks(image, masks, ["star", "nothing"])
    assert labelled.shape == (480, 720, 3)
    changed = (labelled != plain.repeat(6, axis=0).repeat(6, axis=1)).any(axis=2)
    inside = np.zeros((480, 720), bool)
    inside[130:170, 420:600] = True  # around the deepest pixel
    assert changed[inside].any()
    blank = ~dense.numpy().any(0).repeat(6, axis=0).repeat(6, axis=1)
    blank[:30, :100] = False  # the label of the mask of no pixel
    assert not (changed & cv2.erode(blank.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)).any()
    large = np.zeros((700, 40, 3), np.uint8)
    assert draw_masks(large, RunLengthMasks.from_dense(torch.ones(1, 700, 40, dtype=torch.bool)), ["x"]).shape == large.shape


def test_tile() -> None:
    red, thin = np.zeros((20, 40, 3), np.uint8), np.full((600, 1, 3), 7, np.uint8)
    red[..., 0] = 255
    sheet = tile([red, red, thin], columns=2, side=10)
    assert sheet.shape == (20, 20, 3)
    assert (sheet[:5] == (255, 0, 0)).all()
    assert (sheet[5:10] == 255).all()
    assert (sheet[10:, 0] == 7).all()
    assert (sheet[10:, 1:] == 255).all()
    assert (tile([red], columns=1, side=80)[:40] == (255, 0, 0)).all()  # enlarged without mixing colours


def test_files_are_rgb_and_a_failure_is_told(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    save_picture(str(tmp_path / "x.png"), picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), picture)
    with pytest.raises(StorageError, match="cannot be written"):
        save_picture(str(tmp_path / "none" / "x.png"), picture)
