"""Run-length masks against dense arrays and pycocotools, on random masks and on every mask of the real data."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from uniovseg.errors import DataError
from uniovseg.ops import run_length
from uniovseg.ops.run_length import RunLengthMasks

Dense = NDArray[np.bool_]

seeded = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def dense_masks(draw: st.DrawFn, least: int = 0) -> Dense:
    """[n, h, w] bool: 1 x 1, one row and one column come up often, full and empty masks too."""
    shape = (draw(st.integers(least, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    fill = draw(st.sampled_from(["any", "empty", "full"]))
    return draw(arrays.arrays(np.bool_, shape)) if fill == "any" else np.full(shape, fill == "full")


@st.composite
def run_lists(draw: st.DrawFn, pixels: int) -> list[int]:
    """Uncompressed counts that sum to `pixels`, with runs of no pixel anywhere and runs of any length."""
    cuts = sorted(draw(st.lists(st.one_of(st.integers(0, pixels), st.integers(0, 40)), max_size=12)))
    return [int(length) for length in np.diff([0, *cuts, pixels])]


def dense_of_runs(runs: list[list[int]], size: tuple[int, int]) -> Dense:
    """[N, h, w] of uncompressed counts, each repeated in column-major order."""
    dense = np.zeros((len(runs), *size), bool)
    for mask, run in zip(dense, runs, strict=True):
        mask[:] = np.repeat(np.arange(len(run)) % 2 == 1, run).reshape(size[1], size[0]).T
    return dense


def pycoco_counts(dense: Dense) -> list[bytes]:
    return [coco.encode(np.asfortranarray(mask))["counts"] for mask in dense.astype(np.uint8)]


def box_of(dense: Dense) -> list[int]:
    rows, columns = np.flatnonzero(dense.any(1)), np.flatnonzero(dense.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] if len(rows) else [0, 0, 0, 0]


def random_masks(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Blobs, so that runs are neither single pixels nor whole columns."""
    noise = torch.rand(count, 1, height // 4 + 2, width // 4 + 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[:, 0] > 0.55


# --- making and writing ----------------------------------------------------------------------------------------------------------------


@seeded
@given(dense_masks())
def test_dense_masks_come_back_and_are_written_as_pycocotools_writes_them(dense: Dense) -> None:
    size = dense.shape[1:]
    masks = RunLengthMasks.from_dense(torch.from_numpy(dense))
    counts = pycoco_counts(dense)
    assert len(masks) == len(dense)
    assert masks.to_counts() == counts
    assert RunLengthMasks.from_counts(counts, size) == masks
    for made in (masks, RunLengthMasks.from_counts(counts, size)):
        np.testing.assert_array_equal(made.to_dense().numpy(), dense)
        assert made.area().tolist() == dense.sum((1, 2)).tolist()
        assert made.boxes_xyxy().tolist() == [box_of(mask) for mask in dense]


@seeded
@given(st.lists(run_lists(200 * 300), max_size=4), st.just((200, 300)))
def test_runs_of_any_length_are_parsed_as_pycocotools_writes_them(runs: list[list[int]], size: tuple[int, int]) -> None:
    """Runs above 2^15 (four characters, and differences of both signs), runs of no pixel, and very few runs."""
    plain = RunLengthMasks.from_runs(runs, size)
    compressed = [coco.frPyObjects({"size": list(size), "counts": run}, *size)["counts"] for run in runs]
    parsed = RunLengthMasks.from_counts(compressed, size)
    expected = [np.cumsum(run) + index * size[0] * size[1] for index, run in enumerate(runs)]
    np.testing.assert_array_equal(plain.ends.numpy(), np.concatenate([np.zeros(0, np.int64), *expected]))
    assert torch.equal(parsed.ends, plain.ends)
    assert parsed.splits.tolist() == plain.splits.tolist() == np.cumsum([0, *map(len, runs)]).tolist()
    dense = dense_of_runs(runs, size)
    np.testing.assert_array_equal(parsed.to_dense().numpy(), dense)
    assert parsed.area().tolist() == dense.sum((1, 2)).tolist()
    assert parsed.boxes_xyxy().tolist() == [box_of(mask) for mask in dense]
    assert parsed.to_counts() == pycoco_counts(dense)  # runs of no pixel are joined
    assert parsed == RunLengthMasks.from_dense(torch.from_numpy(dense))


def test_a_part_of_a_buffer_is_parsed() -> None:
    dense = random_masks(5, 30, 40)
    counts = pycoco_counts(dense.numpy())
    text = b"\xff\x00" + b"".join(counts) + b"z"
    offsets = 2 + np.cumsum([0, *map(len, counts)])
    masks = RunLengthMasks.from_buffer(np.frombuffer(text, np.uint8), offsets, (30, 40))
    assert torch.equal(masks.to_dense(), dense)
    tail = RunLengthMasks.from_buffer(np.frombuffer(text, np.uint8), offsets[3:], (30, 40))
    assert torch.equal(tail.to_dense(), dense[3:])


def test_coco_segmentations_of_all_forms_mix() -> None:
    dense = random_masks(5, 30, 40)
    masks = RunLengthMasks.from_dense(dense)
    written = masks.to_coco()
    assert json.loads(json.dumps(written)) == written
    assert RunLengthMasks.from_coco(written, (30, 40)) == masks
    lists = [np.diff(masks.select(torch.tensor([i])).ends.numpy(), prepend=0).tolist() for i in range(5)]
    listed = [{"size": [30, 40], "counts": counts} for counts in lists]
    as_bytes = [{"size": (30, 40), "counts": item["counts"].encode()} for item in written]
    assert RunLengthMasks.from_coco(listed, (30, 40)) == masks
    assert RunLengthMasks.from_coco([listed[0], written[1], as_bytes[2], listed[3], as_bytes[4]], (30, 40)) == masks
    assert len(RunLengthMasks.from_coco([], (30, 40))) == 0


def test_dense_views_of_any_layout_are_encoded() -> None:
    dense = random_masks(3, 20, 30)
    for view in (dense.transpose(1, 2), dense[:, ::2, 1:-1], dense[1:2].expand(4, -1, -1)):
        assert torch.equal(RunLengthMasks.from_dense(view).to_dense(), view)


# --- rejections ------------------------------------------------------------------------------------------------------------------------

GOOD = RunLengthMasks.from_runs([[1, 2, 3]], (2, 3)).to_counts()[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"1 3", r"mask 1 has a character that is no run-length code; seen: b' '"),
        (b"1\x2f", r"mask 1 has a character that is no run-length code"),
        (b"p13", r"mask 1 has a character that is no run-length code; seen: b'p'"),
        (b"12c", r"counts of mask 1 end inside a value; seen: b'c'"),
        (b"PPPPPPP010", r"mask 1 has a value of too many characters; seen: 8"),
        (b"2O5", r"mask 1 has a count that is negative or too large; seen: -1"),
        (b"1111M2", r"mask 1 has a count that is negative or too large; seen: -2"),  # the fifth count is 1 - 3
        (b"8", r"mask 1 has a count that is negative or too large; seen: 8; allowed: 0 to 2 \* 3 = 6"),
        (b"122", r"counts of mask 1 do not sum to h\*w; seen: 5; allowed: 2 \* 3 = 6"),
        (b"124", r"counts of mask 1 do not sum to h\*w; seen: 7"),
        (b"", r"counts of mask 1 do not sum to h\*w; seen: 0"),
    ],
)
def test_broken_counts_are_rejected_by_mask(bad: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RunLengthMasks.from_counts([GOOD, bad, GOOD], (2, 3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": [3, 2], "counts": GOOD}, r"mask 1 has another size; seen: \[3, 2\]; allowed: \[2, 3\]"),
        ({"counts": GOOD}, "mask 1 has another size"),
        ({"size": [2, 3]}, "mask 1 is no run-length segmentation"),
        ({"size": [2, 3], "counts": 6}, "mask 1 is no run-length segmentation"),
        ([[0.0, 0.0, 1.0, 1.0]], "mask 1 is no run-length segmentation"),
        ({"size": [2, 3], "counts": "1é"}, "mask 1 has a character that is no run-length code"),
        ({"size": [2, 3], "counts": "1\ud800"}, "mask 1 has a character that is no run-length code"),
        ({"size": [2, 3], "counts": [1, 2, 4]}, r"counts of mask 1 do not sum to h\*w"),
        ({"size": [2, 3], "counts": [1, -1, 6]}, "mask 1 has a count that is negative or too large; seen: -1"),
        ({"size": [2, 3], "counts": [1, 2.0, 3]}, "counts of mask 1 are not a list of integers"),
        ({"size": [2, 3], "counts": [[1, 2, 3]]}, "counts of mask 1 are not a list of integers"),
        ({"size": [2, 3], "counts": [1 << 62, 1 << 62, 1 << 62, 1 << 62, 6]}, "mask 1 has a count that is negative or too large"),
        ({"size": [2, 3], "counts": [1 << 70, 6]}, "counts of mask 1 are not a list of integers"),
    ],
)
def test_broken_segmentations_are_rejected_by_mask(bad: Any, message: str) -> None:
    good = {"size": [2, 3], "counts": GOOD}
    with pytest.raises(DataError, match=message):
        RunLengthMasks.from_coco([good, bad, good], (2, 3))


# --- asking ----------------------------------------------------------------------------------------------------------------------------


def labels_of(dense: Tensor, points_xy: Tensor) -> Tensor:
    """[N, P] values of dense masks under [N, P, 2] points, one by one."""
    count, height, width = dense.shape
    labels = torch.zeros(count, points_xy.shape[1], dtype=torch.bool)
    for index in range(count):
        for at, (x, y) in enumerate(points_xy[index].tolist()):
            if 0 <= x < width and 0 <= y < height:
                labels[index, at] = dense[index, int(y), int(x)]
    return labels


def border_points(height: int, width: int, count: int) -> Tensor:
    """Random points, points on the borders of pixels and of the image, just inside and outside of them, far away, and NaN."""
    generator = torch.Generator().manual_seed(1)
    inside = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    on_border = inside.round()
    below = torch.nextafter(on_border, torch.tensor(-1e9))
    odd = [(0.0, 0.0), (-0.0, 0.5), (width, 0.5), (0.5, height), (-1e-6, 1.0), (1.0, -0.5), (1e12, 1.0), (1.0, -1e12), (3e38, 3e38)]
    odd += [(float("nan"), 1.0), (1.0, float("nan")), (float("inf"), 1.0)]
    return torch.cat([inside, on_border, below, torch.tensor(odd)])


def test_sample_is_the_value_of_the_pixel_that_contains_the_point() -> None:
    dense = random_masks(4, 11, 17)
    dense[2], dense[3] = True, False
    masks = RunLengthMasks.from_dense(dense)
    shared = border_points(11, 17, 60)
    own = torch.stack([shared.roll(shift, 0) for shift in range(4)])
    everywhere = shared.expand(4, -1, 2)
    assert torch.equal(masks.sample(shared), labels_of(dense, everywhere))
    assert torch.equal(masks.sample(own), labels_of(dense, own))
    assert torch.equal(masks.sample(own.double()), labels_of(dense, own))
    for point in shared:  # few look-ups take the direct search
        assert torch.equal(masks.sample(point[None]), labels_of(dense, point.expand(4, 1, 2)))
    index = torch.tensor([3, 0, 0, 1, 2, 2])
    assert torch.equal(masks.sample(own[torch.arange(6) % 4], index), labels_of(dense[index], own[torch.arange(6) % 4]))
    assert torch.equal(masks.sample(shared, index), labels_of(dense[index], shared.expand(6, -1, 2)))


def test_sample_without_masks_or_points() -> None:
    empty = RunLengthMasks.empty((5, 6))
    assert empty.sample(torch.rand(7, 2)).shape == (0, 7)
    assert empty.sample(torch.rand(0, 7, 2)).shape == (0, 7)
    masks = RunLengthMasks.from_dense(random_masks(3, 5, 6))
    assert masks.sample(torch.rand(0, 2)).shape == (3, 0)
    assert masks.sample(torch.rand(3, 0, 2)).shape == (3, 0)


@seeded
@given(dense_masks(least=1), st.data())
def test_sample_reads_every_pixel(dense: Dense, data: st.DataObject) -> None:
    """Runs of no pixel and masks that begin or end with 1 included: the masks are cut into more runs than they need."""
    runs = []
    for mask in dense:
        borders = [0, *(np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=False)).tolist()), mask.size]
        twice = data.draw(st.lists(st.integers(0, mask.size), max_size=3))  # a border met twice changes nothing
        runs.append(np.diff(sorted([*borders, *twice, *twice])).tolist())
    masks = RunLengthMasks.from_runs(runs, dense.shape[1:])
    np.testing.assert_array_equal(masks.to_dense().numpy(), dense)
    y, x = np.mgrid[: dense.shape[1], : dense.shape[2]] + 0.5
    points = torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2))
    expected = torch.from_numpy(dense.reshape(len(dense), -1))
    assert torch.equal(masks.sample(points), expected)
    assert torch.equal(masks.sample(points.expand(len(dense), -1, -1)), expected)
    assert torch.equal(masks.sample(points, torch.arange(len(dense))), expected)


def test_keys_beyond_32_bits() -> None:
    """1,000 masks of SA-1B's size end at 3.4e9."""
    height, width = 1500, 2250
    runs = [[index, 1, height * width - index - 1] for index in range(1000)]
    masks = RunLengthMasks.from_runs(runs, (height, width))
    assert int(masks.ends[-1]) == 1000 * height * width > 2**31
    points = torch.tensor([[0.5, 5.5], [0.5, 999.5]]).repeat(50, 1)
    for labels in (masks.sample(points), masks.sample(points.expand(1000, -1, 2))):
        assert labels.sum(0).tolist() == [1, 1] * 50
        assert bool(labels[5, 0])
        assert bool(labels[999, 1])
    assert masks.select(torch.tensor([999, 0])).boxes_xyxy().tolist() == [[0, 999, 1, 1000], [0, 0, 1, 1]]


@seeded
@given(dense_masks(), st.tuples(*[st.floats(-3, 10) | st.integers(-6, 20).map(lambda value: value / 2)] * 4))
def test_visible_counts_pixel_centres_in_the_window(dense: Dense, window: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = window
    y, x = np.mgrid[: dense.shape[1], : dense.shape[2]] + 0.5
    shown = dense & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    area, boxes = RunLengthMasks.from_dense(torch.from_numpy(dense)).visible(window)
    assert area.tolist() == shown.sum((1, 2)).tolist()
    assert boxes.tolist() == [box_of(mask) for mask in shown]
    assert area.dtype == boxes.dtype == torch.int64


@seeded
@given(st.lists(run_lists(40 * 50), max_size=3), st.tuples(*[st.floats(-10, 60)] * 4))
def test_visible_of_long_runs(runs: list[list[int]], window: tuple[float, float, float, float]) -> None:
    """Runs over many columns, whose part in a window is a strip."""
    dense = dense_of_runs(runs, (40, 50))
    x0, y0, x1, y1 = window
    y, x = np.mgrid[:40, :50] + 0.5
    shown = dense & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    area, boxes = RunLengthMasks.from_runs(runs, (40, 50)).visible(window)
    assert area.tolist() == shown.sum((1, 2)).tolist()
    assert boxes.tolist() == [box_of(mask) for mask in shown]


# --- overlaps --------------------------------------------------------------------------------------------------------------------------


@seeded
@given(st.lists(run_lists(12 * 15), max_size=4), st.lists(run_lists(12 * 15), max_size=4))
def test_intersection_and_iou_of_any_runs(a: list[list[int]], b: list[list[int]]) -> None:
    dense_a, dense_b = (dense_of_runs(runs, (12, 15)).reshape(-1, 180) for runs in (a, b))
    shared = dense_a.astype(np.int64) @ dense_b.T.astype(np.int64)
    union = (dense_a[:, None] | dense_b[None]).sum(-1)
    masks_a, masks_b = RunLengthMasks.from_runs(a, (12, 15)), RunLengthMasks.from_runs(b, (12, 15))
    np.testing.assert_array_equal(masks_a.intersection(masks_b).numpy(), shared)
    np.testing.assert_array_equal(masks_a.iou(masks_b).numpy(), shared / np.maximum(union, 1))


def test_iou_equals_pycocotools_and_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_masks(7, 40, 50), random_masks(9, 40, 50, seed=1)
    b[3], b[4, 20:], a[0, :, :30] = False, False, False
    masks_a, masks_b = RunLengthMasks.from_dense(a), RunLengthMasks.from_dense(b)
    expected = coco.iou(masks_a.to_coco(), masks_b.to_coco(), [0] * 9)
    for limit in (run_length._PAIRED_INTERVALS, 50, 1):
        monkeypatch.setattr(run_length, "_PAIRED_INTERVALS", limit)
        np.testing.assert_array_equal(masks_a.iou(masks_b).numpy(), expected)
        np.testing.assert_array_equal(masks_b.iou(masks_a).numpy(), expected.T)
    with pytest.raises(DataError, match="different sizes"):
        masks_a.iou(RunLengthMasks.empty((50, 40)))


# --- as a container --------------------------------------------------------------------------------------------------------------------


def test_select_cat_and_pickle_keep_the_masks() -> None:
    dense = random_masks(6, 13, 9)
    dense[1], dense[4] = True, False
    masks = RunLengthMasks.from_dense(dense)
    for index in (torch.tensor([4, 1, 1, 0]), torch.arange(6).flip(0), torch.zeros(0, dtype=torch.int64)):
        chosen = masks.select(index)
        assert torch.equal(chosen.to_dense(), dense[index])
        assert torch.equal(chosen.ends, RunLengthMasks.from_dense(dense[index]).ends)
    parts = [masks.select(torch.tensor([0, 1])), RunLengthMasks.empty((13, 9)), masks.select(torch.arange(2, 6))]
    assert torch.equal(RunLengthMasks.cat(parts).ends, masks.ends)
    assert torch.equal(RunLengthMasks.cat(parts).splits, masks.splits)
    with pytest.raises(DataError, match="different sizes"):
        RunLengthMasks.cat([masks, RunLengthMasks.empty((9, 13))])
    assert pickle.loads(pickle.dumps(masks)) == masks  # noqa: S301


def test_equality_is_of_pixels() -> None:
    masks = RunLengthMasks.from_runs([[2, 3, 1], [0, 6]], (2, 3))
    assert masks == RunLengthMasks.from_runs([[2, 1, 0, 2, 1, 0, 0], [0, 4, 0, 0, 0, 2, 0]], (2, 3))
    assert masks != RunLengthMasks.from_runs([[2, 3, 1], [0, 5, 1]], (2, 3))
    assert masks != RunLengthMasks.from_runs([[0, 6], [2, 3, 1]], (2, 3))
    assert masks != RunLengthMasks.from_runs([[2, 3, 1]], (2, 3))
    assert masks != RunLengthMasks.from_runs([[2, 3, 1], [0, 6]], (3, 2))
    assert masks != "masks"
    with pytest.raises(TypeError):
        hash(masks)


# --- real masks ------------------------------------------------------------------------------------------------------------------------

SETS = ["ade20k_150_sample", "coco128", "coco_mini", "panopticapi_sample", "sav_example_json"]


def real_data() -> Path:
    root = os.environ.get("UNIOVSEG_REAL_DATA")
    if not root:
        pytest.skip("UNIOVSEG_REAL_DATA is not set: real masks are not compared")
    return Path(root)


def panoptic_masks(path: Path) -> list[dict[str, Any]]:
    colours = np.asarray(Image.open(path).convert("RGB"), np.int64)
    ids = colours @ np.array([1, 256, 65536])
    return [coco.encode(np.asfortranarray((ids == value).astype(np.uint8))) for value in np.unique(ids)]


def instance_masks(path: Path) -> Iterator[list[dict[str, Any]]]:
    """COCO annotations of one image at a time: polygons and uncompressed counts rasterised by pycocotools, compressed ones as they are."""
    content = json.loads(path.read_text())
    for image in content["images"]:
        size = (image["height"], image["width"])
        found = [item["segmentation"] for item in content["annotations"] if item["image_id"] == image["id"]]
        yield [rasterised(segmentation, size) for segmentation in found]


def rasterised(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    if isinstance(segmentation, list):
        return dict(coco.merge(coco.frPyObjects(segmentation, *size)))
    return dict(coco.frPyObjects(segmentation, *size)) if isinstance(segmentation["counts"], list) else segmentation


def images_of(name: str, root: Path) -> Iterator[list[dict[str, Any]]]:
    if name == "sav_example_json":
        for path in sorted((root / name).rglob("*.json")):
            yield from ([mask for mask in frame if mask] for frame in json.loads(path.read_text())["masklet"])
    elif name == "coco_mini":
        for path in sorted((root / name).rglob("instances_*.json")):
            yield from instance_masks(path)
    else:  # labels as colours, or as grey values
        yield from map(panoptic_masks, sorted(path for path in (root / name).rglob("*.png") if "2ch" not in str(path)))
        for path in sorted((root / name).rglob("*detection_format.json")):
            yield from instance_masks(path)


@pytest.mark.parametrize("name", SETS)
def test_every_real_mask_equals_pycocotools(name: str) -> None:
    compared = 0
    generator = torch.Generator().manual_seed(0)
    for segmentations in images_of(name, real_data()):
        if not segmentations:
            continue
        height, width = segmentations[0]["size"]
        masks = RunLengthMasks.from_coco(segmentations, (height, width))
        last = coco.decode(segmentations)  # [h, w, n], column-major
        decoded = last.transpose(2, 0, 1).astype(bool)
        np.testing.assert_array_equal(masks.to_dense().numpy(), decoded)
        assert masks.area().tolist() == coco.area(segmentations).tolist()
        x, y, w, h = coco.toBbox(segmentations).T
        np.testing.assert_array_equal(masks.boxes_xyxy().numpy(), np.stack([x, y, x + w, y + h], 1))
        dense = RunLengthMasks.from_dense(torch.from_numpy(decoded))
        assert masks.to_counts() == dense.to_counts() == [item["counts"] for item in coco.encode(last)]
        expected = coco.iou(segmentations, segmentations, [0] * len(segmentations))
        np.testing.assert_array_equal(masks.iou(masks).numpy(), expected)
        points = torch.rand(500, 2, generator=generator) * torch.tensor([width, height])
        at_x, at_y = points.long().T
        np.testing.assert_array_equal(masks.sample(points).numpy(), decoded[:, at_y, at_x])
        compared += len(masks)
    assert compared > 10, f"{name} holds almost no masks"


def test_uncompressed_real_counts_need_no_pycocotools() -> None:
    """coco_mini's crowd annotations are lists of counts."""
    compared = 0
    for path in sorted((real_data() / "coco_mini").rglob("instances_*.json")):
        content = json.loads(path.read_text())
        for item in content["annotations"]:
            if isinstance(item["segmentation"], dict) and isinstance(item["segmentation"]["counts"], list):
                size = tuple(item["segmentation"]["size"])
                masks = RunLengthMasks.from_coco([item["segmentation"]], size)
                assert masks.to_counts() == [coco.frPyObjects(item["segmentation"], *size)["counts"]]
                compared += 1
    assert compared > 0


# --- on the GPU ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    dense = random_masks(8, 60, 70)
    masks = RunLengthMasks.from_dense(dense)
    there = masks.to("cuda")
    assert there == masks
    assert RunLengthMasks.from_dense(dense.cuda()) == masks
    shared = border_points(60, 70, 900)
    own = torch.stack([shared.roll(shift, 0) for shift in range(8)])
    index = torch.tensor([7, 7, 0, 3])
    for points, asked in ((shared, None), (own, None), (own[:4], index), (shared[:2], None)):
        labels = there.sample(points.cuda(), None if asked is None else asked.cuda())
        assert torch.equal(labels.cpu(), masks.sample(points, asked))
    for result, expected in zip(there.visible((3.2, 4.5, 50.0, 40.1)), masks.visible((3.2, 4.5, 50.0, 40.1)), strict=True):
        assert torch.equal(result.cpu(), expected)
    assert torch.equal(there.area().cpu(), masks.area())
    assert torch.equal(there.iou(there).cpu(), masks.iou(masks))
    assert torch.equal(there.to_dense().cpu(), dense)
    assert there.select(index.cuda()).to_counts() == masks.select(index).to_counts()
    assert RunLengthMasks.cat([there, there]).to_coco() == masks.to_coco() * 2
