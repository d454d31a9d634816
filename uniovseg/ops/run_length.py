"""Run-length masks: all masks of one image as one ragged tensor, from the Parquet shard to the loss, never decoded.

A COCO run-length mask lists, in column-major order (down the first column, then the second), how many pixels are 0, then 1, then 0, ...
The cumulative sums of these counts are the *run ends*: pixel ``p = x * h + y`` of a mask lies in the first run whose end is above p, and
its value is the parity of that run. So a label at any point is a binary search, and a thousand labels are one vectorised
`torch.searchsorted`, on the device of the model. To search all masks at once their run ends lie one after another, mask i shifted by
``i * h * w``, which keeps the whole array sorted; such a shifted position is called a *key* below. Areas, boxes and overlaps come from the
*intervals*, the runs of ones.

The compressed form writes each count as 5-bit groups in printable characters (low bits first; bit 5 says that another follows; the last
group's bit 4 is the sign), and from a mask's fourth count on only the difference to the count two before. So the counts form two chains,
every second one, and parsing is two running sums that start anew at each mask: no loop over characters or runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniovseg.errors import DataError

_LONGEST_VALUE = 7  # characters: 34 bits and a sign hold any difference of 32-bit counts, and their sums cannot overflow 64 bits
_PAIRED_INTERVALS = 1 << 20  # intervals that `intersection` expands at once, to bound its memory


@dataclass(frozen=True, slots=True, eq=False)
class RunLengthMasks:
    """N binary masks of one image.

    Attributes:
        ends: [R] int64, run ends of all masks; those of mask i are shifted by ``i * h * w``, so the array never decreases. Runs alternate
            0, 1 and start with 0 in every mask; runs of no pixel are allowed.
        splits: [N + 1] int64, index of each mask's first run.
        size: (h, w) in pixels.
    """

    ends: Tensor
    splits: Tensor
    size: tuple[int, int]

    # --- making -------------------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_counts(cls, counts: Sequence[bytes], size: tuple[int, int]) -> "RunLengthMasks":
        """Parse compressed COCO counts, one byte string a mask. Raises DataError naming a mask that is not valid for `size` (h, w)."""
        return cls.from_buffer(np.frombuffer(b"".join(counts), np.uint8), _offsets(counts), size)

    @classmethod
    def from_buffer(cls, characters: NDArray[np.uint8], offsets: NDArray[np.int64], size: tuple[int, int]) -> "RunLengthMasks":
        """Parse compressed COCO counts from one buffer, as Arrow holds a list of binaries.

        Args:
            characters: [C] uint8, the ASCII characters of all masks (and perhaps others before and after).
            offsets: [N + 1] int64, never decreasing: mask i is ``characters[offsets[i]:offsets[i + 1]]``.
            size: (h, w) in pixels.

        Raises:
            DataError: a character out of range, a value cut at the end or too long, a negative count, or counts that do not sum to h * w;
                the message names the mask.
        """
        counts, splits = _decode_counts(characters[offsets[0] : offsets[-1]], offsets - offsets[0])
        return cls._from_run_lengths(counts, splits, size)

    @classmethod
    def from_runs(cls, runs: Sequence[Sequence[int] | NDArray[np.integer[Any]]], size: tuple[int, int]) -> "RunLengthMasks":
        """From uncompressed counts, one sequence of integers a mask. Raises DataError naming a mask that is not valid for `size` (h, w)."""
        arrays = [np.asarray(run) for run in runs]
        for index, array in enumerate(arrays):
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise DataError(f"the counts of mask {index} are not a list of integers", seen=f"{array.dtype} of shape {array.shape}")
        counts = np.concatenate([np.zeros(0, np.int64), *(array.astype(np.int64) for array in arrays)])
        return cls._from_run_lengths(counts, _offsets(arrays), size)

    @classmethod
    def from_coco(cls, segmentations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> "RunLengthMasks":
        """From COCO run-length segmentations ``{"size": [h, w], "counts": ...}``.

        Args:
            segmentations: one mapping a mask; counts are compressed (str or bytes) or uncompressed (a list of integers), in any mixture.
            size: (h, w) that every mask must have.

        Raises:
            DataError: a mask of another size or form, or one that `from_counts` or `from_runs` rejects; the message names the mask.
        """
        form = "{'size': [h, w], 'counts': str, bytes or list}"
        for index, segmentation in enumerate(segmentations):
            if not isinstance(segmentation, Mapping) or not isinstance(segmentation.get("counts"), str | bytes | list):
                raise DataError(f"mask {index} is no run-length segmentation", seen=str(segmentation)[:80], allowed=form)
            if segmentation.get("size") not in (list(size), tuple(size)):
                raise DataError(f"mask {index} has another size", seen=segmentation.get("size"), allowed=list(size))
        counts = [segmentation["counts"] for segmentation in segmentations]
        listed = [isinstance(item, list) for item in counts]
        # Each list is an empty string to the parser, so that its messages count the masks right. UTF-8 makes a character beyond ASCII one
        # that it rejects.
        encoded = [item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item for item in counts]
        compressed = [b"" if isinstance(item, list) else item for item in encoded]
        if not any(listed):
            return cls.from_counts(compressed, size)
        values, splits = _decode_counts(np.frombuffer(b"".join(compressed), np.uint8), _offsets(compressed))
        parsed = np.split(values, splits[1:-1])
        return cls.from_runs([item if isinstance(item, list) else run for item, run in zip(counts, parsed, strict=True)], size)

    @classmethod
    def _from_run_lengths(cls, counts: NDArray[np.int64], splits: NDArray[np.int64], size: tuple[int, int]) -> "RunLengthMasks":
        height, width = size
        pixels = height * width
        if len(counts) and (counts.min() < 0 or counts.max() > pixels):
            at = int(np.argmax((counts < 0) | (counts > pixels)))
            mask = int(np.searchsorted(splits, at, side="right")) - 1
            raise DataError(
                f"mask {mask} has a count that is negative or too large",
                seen=int(counts[at]),
                allowed=f"0 to {height} * {width} = {pixels}",
            )
        sums = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=sums[1:])
        totals = np.diff(sums[splits])
        wrong = np.flatnonzero(totals != pixels)
        if len(wrong):
            raise DataError(f"the counts of mask {wrong[0]} do not sum to h*w", seen=int(totals[wrong[0]]), allowed=f"{height} * {width} = {pixels}")
        # Every mask sums to h * w, so the running sum over all masks is already shifted by i * h * w.
        return cls(torch.from_numpy(sums[1:]), torch.from_numpy(splits), (height, width))

    @classmethod
    def from_dense(cls, masks: Tensor) -> "RunLengthMasks":
        """From a bool tensor [N, h, w]; the result is on its device."""
        count, height, width = masks.shape
        # Which pixels differ from the one before them in column-major order is found in the tensor's own row-major order, without a
        # transposed copy: the pixel before is the one above, and for the top row the bottom of the column to the left. Only the borders
        # are sorted.
        change = torch.empty(count, height, width, dtype=torch.bool, device=masks.device)
        torch.ne(masks[:, 1:], masks[:, :-1], out=change[:, 1:])
        change[:, 0, 1:] = masks[:, 0, 1:] != masks[:, -1, :-1]
        change[:, 0, 0] = masks[:, 0, 0]
        at = _true_positions(change.reshape(-1))
        owner, row, column = at // (height * width), at // width % height, at % width
        keys = owner * (height * width) + column * height + row
        last = torch.arange(1, count + 1, device=masks.device) * (height * width)
        # The end of a mask and a change at the first pixel of the next are equal keys, so that their order does not matter.
        runs = torch.bincount(owner, minlength=count) + 1
        return cls(torch.cat([keys, last]).sort().values, _splits(runs), (height, width))

    @classmethod
    def empty(cls, size: tuple[int, int], device: torch.device | str = "cpu") -> "RunLengthMasks":
        """No masks, of an image of `size` (h, w)."""
        return cls(torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int64, device=device), size)

    @classmethod
    def cat(cls, parts: Sequence["RunLengthMasks"]) -> "RunLengthMasks":
        """The masks of all parts, in order. At least one part, all on one device. Raises DataError when their sizes differ."""
        size = parts[0].size
        if any(part.size != size for part in parts):
            raise DataError("masks of different sizes cannot be joined", seen=[part.size for part in parts])
        pixels, runs, masks = size[0] * size[1], 0, 0
        ends, splits = [], [parts[0].splits[:1]]
        for part in parts:
            ends.append(part.ends + masks * pixels)
            splits.append(part.splits[1:] + runs)
            masks, runs = masks + len(part), runs + len(part.ends)
        return cls(torch.cat(ends), torch.cat(splits), size)

    # --- as a container -----------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.splits) - 1

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same masks, pixel for pixel and in order, however their runs are cut and on whatever device."""
        if not isinstance(other, RunLengthMasks):
            return NotImplemented
        if self.size != other.size or len(self) != len(other):
            return False
        mine, theirs = self._joined(), other._joined()
        return torch.equal(mine.splits.cpu(), theirs.splits.cpu()) and torch.equal(mine.ends.cpu(), theirs.ends.cpu())

    __hash__ = None  # type: ignore[assignment]

    def to(self, device: torch.device | str) -> "RunLengthMasks":
        """The masks on `device`."""
        return RunLengthMasks(self.ends.to(device, non_blocking=True), self.splits.to(device, non_blocking=True), self.size)

    def select(self, index: Tensor) -> "RunLengthMasks":
        """The masks at `index`: [K] int64 from 0 to N - 1, any order, repeats allowed."""
        lengths = self.splits.diff()[index]
        splits = _splits(lengths)
        owner = _owners(lengths)
        position = torch.arange(len(owner), device=owner.device) + (self.splits[index] - splits[:-1]).index_select(0, owner)
        shift = (torch.arange(len(index), device=owner.device) - index) * self._pixels
        return RunLengthMasks(self.ends.index_select(0, position) + shift.index_select(0, owner), splits, self.size)

    # --- asking -------------------------------------------------------------------------------------------------------------------------

    def sample(self, points_xy: Tensor, index: Tensor | None = None) -> Tensor:
        """The masks' values at points.

        Args:
            points_xy: float source pixels (x, y): [P, 2] for the same points in all masks, or [K, P, 2], a row for each mask asked.
            index: [K] the masks asked, repeats allowed; None asks all N in order.

        Returns:
            bool [K, P] (K = N without `index`): whether the pixel that contains the point belongs to the mask; False outside the image
            and at NaN.

        Differs: the release samples resized masks bilinearly; here a label is the exact value of one pixel.
        """
        height, width = self.size
        x, y = points_xy.unbind(-1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        position = torch.add(y.to(torch.int64), x.to(torch.int64), alpha=height)  # of any value outside, where the label is False anyway
        if position.dim() == 1 and index is None and len(self.ends) < len(self) * len(position):
            return self._sample_shared(position) & inside
        asked = torch.arange(len(self), device=position.device) if index is None else index
        run = torch.searchsorted(self.ends, position + asked[:, None] * self._pixels, right=True, out_int32=True)
        return ((run - self.splits[asked, None].int()) & 1).bool() & inside

    def _sample_shared(self, position: Tensor) -> Tensor:
        """[N, P] values at the same column-major positions [P] of all masks.

        Turned round, which is cheaper when the runs are fewer than the look-ups: every run's end is searched among the sorted positions,
        where it flips the label of all that follow.
        """
        ordered, order = position.sort()
        owner = _owners(self.splits.diff())
        rank = torch.searchsorted(ordered, self.ends - owner * self._pixels)  # the first position at or beyond the end of the run
        row = len(position) + 1  # the last column takes the ends beyond all positions
        flips = torch.zeros(len(self) * row, dtype=torch.int32, device=rank.device)
        flips.index_add_(0, owner * row + rank, torch.ones_like(rank, dtype=torch.int32))
        labels = (flips.view(-1, row).cumsum(1, dtype=torch.int32) & 1).bool()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return labels.index_select(1, inverse)

    def area(self) -> Tensor:
        """Pixels of each mask, int64 [N]."""
        owner, starts, ends = self._intervals()
        return torch.zeros(len(self), dtype=torch.int64, device=self.ends.device).index_add_(0, owner, ends - starts)

    def boxes_xyxy(self) -> Tensor:
        """Tight boxes, int64 [N, 4] (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask."""
        return self.visible((0.0, 0.0, float(self.size[1]), float(self.size[0])))[1]

    def visible(self, window_xyxy: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
        """Area and tight box of the part of each mask whose pixel centres lie in a window.

        Args:
            window_xyxy: window in source pixels, half-open; it may reach beyond the image.

        Returns:
            area int64 [N] and boxes int64 [N, 4] in source pixels (exclusive; zeros where nothing is visible).
        """
        height, width = self.size
        limits = (width, height, width, height)
        x0, y0, x1, y1 = (min(max(int(np.ceil(value - 0.5)), 0), limit) for value, limit in zip(window_xyxy, limits, strict=True))
        boxes = torch.zeros(len(self), 4, dtype=torch.int64, device=self.ends.device)
        if x0 >= x1 or y0 >= y1:
            return boxes[:, 0].clone(), boxes
        owner, starts, ends = self._intervals()
        if x1 - x0 < width:
            shift = owner * self._pixels
            starts, ends = starts.clamp(shift + x0 * height, shift + x1 * height), ends.clamp(shift + x0 * height, shift + x1 * height)
        # Positions in the strip of rows y0 to y1 that runs, column by column, through all masks, each `width` columns.
        rows = y1 - y0
        first, top = _strip_position(starts, height, y0, y1)
        last, _ = _strip_position(ends, height, y0, y1)
        length = last - first
        before = _splits(length)
        mask = _splits(self.splits.diff() // 2)  # each mask's intervals
        area = before[mask].diff()
        # Intervals come in order, so a mask's first and last column are those of the first and last interval that is seen.
        leftmost = torch.searchsorted(before, before[mask[:-1]], right=True) - 1
        rightmost = torch.searchsorted(before, before[mask[1:]]) - 1
        inside = area > 0
        boxes[inside, 0] = first[leftmost[inside]] // rows
        boxes[inside, 2] = (last[rightmost[inside]] - 1) // rows + 1
        # An interval that reaches over a column's end touches the strip's bottom row and its top row. Hidden ones change no minimum or maximum.
        top.masked_fill_(top == rows, 0)
        bottom = top + length
        hidden = length == 0
        top.masked_fill_(bottom > rows, 0).masked_fill_(hidden, rows)
        bottom.clamp_(max=rows).masked_fill_(hidden, 0)
        boxes[:, 1] = area.new_full(area.shape, rows).scatter_reduce_(0, owner, top, "amin") + y0
        boxes[:, 3] = area.new_zeros(area.shape).scatter_reduce_(0, owner, bottom, "amax") + y0
        boxes[:, 0::2] -= torch.arange(len(self), device=boxes.device)[:, None] * width
        return area, boxes.masked_fill_(~inside[:, None], 0)

    def intersection(self, other: "RunLengthMasks") -> Tensor:
        """Pixels that mask i of self and mask j of other share, int64 [N, M]. Both must be of one size and on one device.

        A pair whose boxes meet takes the intervals of mask i in the columns of j's box; the pixels of j in an interval are the difference
        of j's area before its end and before its start, two binary searches. Raises DataError when the sizes differ.
        """
        if self.size != other.size:
            raise DataError("masks of different sizes have no intersection", seen=other.size, allowed=self.size)
        if len(other.ends) < len(self.ends):
            return other.intersection(self).T
        _, starts, ends = self._intervals()
        boxes = other.boxes_xyxy()
        mine, theirs = _overlapping(self.boxes_xyxy(), boxes).unbind(1)
        begin = torch.searchsorted(ends, mine * self._pixels + boxes[theirs, 0] * self.size[0], right=True)
        stop = torch.searchsorted(starts, mine * self._pixels + boxes[theirs, 2] * self.size[0])
        area_before = _AreaBefore(other)
        shared = torch.zeros(len(self) * len(other), dtype=torch.int64, device=self.ends.device)
        chunk = (stop - begin).cumsum(0) // _PAIRED_INTERVALS
        for pairs in torch.tensor_split(torch.arange(len(mine), device=mine.device), chunk.diff().nonzero().flatten().cpu() + 1):
            lengths = (stop - begin)[pairs]
            owner = _owners(lengths)
            interval = torch.arange(len(owner), device=owner.device) + (begin[pairs] - _splits(lengths)[:-1])[owner]
            shift = ((theirs - mine)[pairs] * self._pixels)[owner]  # from mask i's keys to mask j's
            pixels = area_before(ends[interval] + shift) - area_before(starts[interval] + shift)
            shared.index_add_(0, (mine * len(other) + theirs)[pairs][owner], pixels)
        return shared.view(len(self), len(other))

    def iou(self, other: "RunLengthMasks") -> Tensor:
        """Intersection over union, float64 [N, M] in [0, 1], as `pycocotools.mask.iou`; 0 where both masks are empty."""
        shared = self.intersection(other)
        union = self.area()[:, None] + other.area() - shared
        return shared.double() / union.clamp(min=1)

    # --- writing ------------------------------------------------------------------------------------------------------------------------

    def to_dense(self) -> Tensor:
        """bool [N, h, w] on the masks' device (made on the CPU: for pictures, tests and small images)."""
        height, width = self.size
        lengths = self._lengths()
        ones = (torch.arange(len(self.ends), device=self.ends.device) - self.splits[_owners(self.splits.diff())]) & 1
        columns = np.repeat(ones.bool().cpu().numpy(), lengths.cpu().numpy()).reshape(len(self), width, height)
        return torch.from_numpy(np.ascontiguousarray(columns.transpose(0, 2, 1))).to(self.ends.device)

    def to_counts(self) -> list[bytes]:
        """Compressed COCO counts of each mask, byte for byte as `pycocotools.mask.encode` writes them."""
        joined = self._joined()
        characters, offsets = _encode_counts(joined._lengths().cpu().numpy(), joined.splits.cpu().numpy())
        text = characters.tobytes()
        return [text[begin:stop] for begin, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO RLE of each mask, ready for JSON: ``{"size": [h, w], "counts": str}``."""
        return [{"size": list(self.size), "counts": counts.decode("ascii")} for counts in self.to_counts()]

    # --- inside -------------------------------------------------------------------------------------------------------------------------

    @property
    def _pixels(self) -> int:
        return self.size[0] * self.size[1]

    def _lengths(self) -> Tensor:
        """Pixels of each run, int64 [R]."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))

    def _intervals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Runs of ones: mask, start key and end key of each, int64, in ascending order; runs of no pixel included."""
        lengths = self.splits.diff() // 2
        owner = _owners(lengths)
        skipped = torch.repeat_interleave(self.splits[:-1] - 2 * _splits(lengths)[:-1], lengths)  # last runs of zeros of the masks before
        run = torch.arange(0, 2 * len(owner), 2, device=owner.device) + skipped
        return owner, self.ends.index_select(0, run), self.ends.index_select(0, run + 1)

    def _joined(self) -> "RunLengthMasks":
        """The same masks with the fewest runs: none without pixels but a leading one, which makes equal masks equal tensors."""
        lengths = self._lengths()
        lengths[self.splits[:-1]] = 1
        if bool((lengths > 0).all()):
            return self
        owner, starts, ends = self._intervals()
        kept = starts < ends
        owner, starts, ends = owner[kept], starts[kept], ends[kept]
        mark = owner.new_full((1,), -1)
        # Whether an interval goes on from the one before, of the same mask.
        touches = (starts == torch.cat([mark, ends])[:-1]) & (owner == torch.cat([mark, owner])[:-1])
        touched = torch.cat([touches, touches.new_zeros(1)])[1:]
        owner = owner[~touches]
        borders = torch.stack([starts[~touches], ends[~touched]], 1)
        inner = borders < (owner[:, None] + 1) * self._pixels  # the end of the mask itself is added to all masks alike
        borders, owner = borders[inner], owner[:, None].expand(-1, 2)[inner]
        splits = _splits(torch.bincount(owner, minlength=len(self)) + 1)
        joined = torch.empty(len(borders) + len(self), dtype=torch.int64, device=owner.device)
        joined[torch.arange(len(borders), device=owner.device) + owner] = borders
        joined[splits[1:] - 1] = torch.arange(1, len(self) + 1, device=owner.device) * self._pixels
        return RunLengthMasks(joined, splits, self.size)


class _AreaBefore:
    """Pixels of all masks of a set before a key; the difference of two keys of one mask counts its pixels between them."""

    def __init__(self, masks: RunLengthMasks) -> None:
        _, self.starts, ends = masks._intervals()
        self.ends = torch.cat([ends.new_zeros(1), ends])
        self.sums = _splits(ends - self.starts)

    def __call__(self, keys: Tensor) -> Tensor:
        begun = torch.searchsorted(self.starts, keys)
        return self.sums[begun] - (self.ends[begun] - keys).clamp(min=0)


def _splits(lengths: Tensor) -> Tensor:
    """[K + 1] int64 running sums of [K] lengths, from 0: where each of K ragged rows begins, and the total."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _owners(lengths: Tensor) -> Tensor:
    """The row of every element of ragged rows of these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _offsets(rows: Sequence[Any]) -> NDArray[np.int64]:
    """[K + 1] where each of K rows begins when they are joined, and the total."""
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)


def _true_positions(flags: Tensor) -> Tensor:
    """[K] int64 indices where [P] bool flags are set, ascending. On the CPU numpy finds rare flags ten times faster than torch."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().flatten()


def _strip_position(positions: Tensor, height: int, y0: int, y1: int) -> tuple[Tensor, Tensor]:
    """Pixels with y0 <= y < y1 before a column-major position of columns of `height`, and how many of them are in the position's own column."""
    column = positions // height
    row = positions.sub(column, alpha=height).clamp_(y0, y1).sub_(y0)
    return row.add(column, alpha=y1 - y0), row


def _overlapping(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """[K, 2] pairs (i, j) of boxes [N, 4] and [M, 4] that share a pixel."""
    low = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return (low < high).all(-1).nonzero()


def _heads(splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The runs that are written as they are, not as differences: the first three of each mask, ascending."""
    heads = splits[:-1, None] + np.arange(3)
    return heads[heads < splits[1:, None]]


def _decode_counts(characters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths [R] of all masks and the index [N + 1] of each mask's first run, from compressed characters. Raises DataError."""
    codes = characters - np.uint8(48)  # wraps, so that a smaller character is out of range too
    last = np.flatnonzero(codes < 32)  # the last character of each value
    lengths = np.diff(last, prepend=-1)
    _check_codes(characters, codes, offsets, last, lengths)
    values = (codes[last] ^ 16).astype(np.int64) - 16  # bit 4 of the last group is the sign
    longer, back = np.flatnonzero(lengths > 1), 1
    while len(longer):  # once per character of the longest value, from the high bits down
        values[longer] = (values[longer] << 5) | (codes[last[longer] - back] & 31)
        back += 1
        longer = longer[lengths[longer] > back]
    splits = np.searchsorted(last, offsets)
    _undo_differences(values, splits)
    return values, splits


def _check_codes(
    characters: NDArray[np.uint8], codes: NDArray[np.uint8], offsets: NDArray[np.int64], last: NDArray[np.int64], lengths: NDArray[np.int64]
) -> None:
    if len(codes) and codes.max() > 63:
        at = int(np.argmax(codes > 63))
        mask = int(np.searchsorted(offsets, at, side="right")) - 1
        raise DataError(f"mask {mask} has a character that is no run-length code", seen=bytes(characters[at : at + 1]), allowed="'0' to 'o'")
    filled = np.flatnonzero(np.diff(offsets))
    cut = filled[codes[offsets[filled + 1] - 1] > 31]
    if len(cut):
        end = int(offsets[cut[0] + 1])
        raise DataError(f"the counts of mask {cut[0]} end inside a value", seen=bytes(characters[end - 1 : end]), allowed="'0' to 'O' at the end")
    if len(lengths) and lengths.max() > _LONGEST_VALUE:
        at = int(np.argmax(lengths > _LONGEST_VALUE))
        mask = int(np.searchsorted(offsets, last[at], side="right")) - 1
        raise DataError(f"mask {mask} has a value of too many characters", seen=int(lengths[at]), allowed=f"at most {_LONGEST_VALUE}")


def _undo_differences(values: NDArray[np.int64], splits: NDArray[np.int64]) -> None:
    """Turn differences to the value two before into the values, in place: running sums over every second one, restarted at the heads."""
    heads = _heads(splits)
    for parity in (0, 1):
        chain = values[parity::2]
        starts = heads[heads % 2 == parity] // 2
        before = np.append(0, np.cumsum(chain))[starts]  # what a running sum without restarts has gathered up to each head
        chain[starts] -= np.diff(before, prepend=0)
        np.cumsum(chain, out=chain)


def _encode_counts(counts: NDArray[np.int64], splits: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Characters [C] of all masks and the offset [N + 1] of each mask's first one: the inverse of `_decode_counts`."""
    values = counts.copy()
    values[2:] -= counts[:-2]
    heads = _heads(splits)
    values[heads] = counts[heads]
    magnitude = values ^ (values >> 63)  # -1 - v for negative v: k groups hold a value when this needs less than 5 k bits
    lengths = np.ones(len(values), np.int64)
    longer = np.flatnonzero(magnitude >> 4)
    while len(longer):  # once per character of the longest value, as below
        lengths[longer] += 1
        longer = longer[magnitude[longer] >> (5 * lengths[longer] - 1) > 0]
    offsets = np.append(0, np.cumsum(lengths))
    characters = np.empty(offsets[-1], np.uint8)
    writing, group = np.arange(len(values)), 0
    while len(writing):
        more = lengths[writing] > group + 1
        characters[offsets[writing] + group] = (values[writing] >> 5 * group & 31) + 32 * more + 48
        writing, group = writing[more], group + 1
    return characters, offsets[splits]
