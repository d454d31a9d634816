"""Run-length masks: all masks of one image as one ragged tensor, from the Parquet shard to the loss, never decoded.

A COCO run-length mask lists, in column-major order (down the first column, then the second), how many pixels are 0, then 1, then 0, ... The
cumulative sums of these counts are the *run ends*: pixel ``p = x * h + y`` of a mask lies in the first run whose end is above p, and its value is
the parity of that run. So a label at any point is a binary search, and a thousand labels are one vectorised `torch.searchsorted`, on the device
of the model. To search all masks at once their run ends lie one after another, mask i shifted by ``i * h * w``, which keeps the whole array sorted.

The compressed form writes each count as 5-bit groups in printable characters (low bits first; bit 5 says that another follows; the last group's
bit 4 is the sign), and from the fourth count on only the difference to the count two before. Parsing is sums over groups and prefix sums over every
second count: no loop over characters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniovseg.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class RunLengthMasks:
    """N binary masks of one image.

    Attributes:
        ends: [R] int64, run ends of all masks; those of mask i are shifted by ``i * h * w``, so the array never decreases. Runs alternate 0, 1 and
            start with 0 in every mask; runs of no pixel are allowed.
        splits: [N + 1] int64, index of each mask's first run.
        size: (h, w) in pixels.
    """

    ends: Tensor
    splits: Tensor
    size: tuple[int, int]

    # --- making -------------------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_counts(cls, counts: Sequence[bytes], size: tuple[int, int]) -> "RunLengthMasks":
        """Parse compressed COCO counts. Raises DataError naming the first mask that is not valid for `size`."""
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls.from_buffer(np.frombuffer(b"".join(counts), np.uint8), offsets, size)

    @classmethod
    def from_buffer(cls, characters: NDArray[np.uint8], offsets: NDArray[np.int64], size: tuple[int, int]) -> "RunLengthMasks":
        """Parse compressed COCO counts from one buffer, as Arrow holds a list of binaries: mask i is ``characters[offsets[i]:offsets[i + 1]]``."""
        base = int(offsets[0])
        counts, splits = _decode_counts(characters[base : int(offsets[-1])], offsets - base)
        return cls._from_run_lengths(counts, splits, size)

    @classmethod
    def from_runs(cls, runs: Sequence[Sequence[int]], size: tuple[int, int]) -> "RunLengthMasks":
        """From uncompressed counts, one list a mask. Raises DataError naming the first mask that is not valid for `size`."""
        lengths = np.fromiter(map(len, runs), np.int64, len(runs))
        splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        counts = np.concatenate([np.asarray(run, np.int64) for run in runs]) if len(runs) else np.zeros(0, np.int64)
        return cls._from_run_lengths(counts, splits, size)

    @classmethod
    def from_coco(cls, segmentations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> "RunLengthMasks":
        """From COCO segmentations ``{"size": [h, w], "counts": ...}`` with compressed (str, bytes) or uncompressed (list) counts, all of `size`."""
        for index, segmentation in enumerate(segmentations):
            if tuple(segmentation["size"]) != tuple(size):
                raise DataError(f"mask {index} has another size", seen=list(segmentation["size"]), allowed=list(size))
        counts = [segmentation["counts"] for segmentation in segmentations]
        if all(isinstance(item, list) for item in counts):
            return cls.from_runs(counts, size)
        try:
            compressed = [item.encode("ascii") if isinstance(item, str) else item for item in counts]
        except UnicodeEncodeError as error:
            raise DataError("a mask's counts are not ASCII", seen=error.object[:20]) from error
        if all(isinstance(item, bytes) for item in compressed):
            return cls.from_counts(compressed, size)
        return cls.cat([cls.from_coco([segmentation], size) for segmentation in segmentations])

    @classmethod
    def _from_run_lengths(cls, counts: NDArray[np.int64], splits: NDArray[np.int64], size: tuple[int, int]) -> "RunLengthMasks":
        height, width = size
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        totals = sums[splits[1:]] - sums[splits[:-1]]
        if len(counts) and counts.min() < 0:
            mask = int(np.searchsorted(splits, np.argmax(counts < 0), side="right")) - 1
            raise DataError(f"mask {mask} has a negative run", seen=int(counts.min()), allowed="counts of at least 0")
        wrong = np.flatnonzero(totals != height * width)
        if len(wrong):
            raise DataError(
                f"the counts of mask {wrong[0]} do not sum to h*w", seen=int(totals[wrong[0]]), allowed=f"{height} * {width} = {height * width}"
            )
        # Every mask sums to h*w, so the running sum over all masks is already shifted by i * h * w.
        return cls(torch.from_numpy(sums[1:]), torch.from_numpy(splits), (height, width))

    @classmethod
    def from_dense(cls, masks: Tensor) -> "RunLengthMasks":
        """From a bool tensor [N, h, w]; the result is on its device."""
        count, height, width = masks.shape
        if count == 0:
            return cls.empty((height, width), masks.device)
        flat = masks.transpose(1, 2).reshape(count, -1)
        before = torch.cat([flat.new_zeros(count, 1), flat[:, :-1]], dim=1)
        change = (flat != before).reshape(-1).nonzero().flatten()  # where a run ends, shifted by i * h * w
        owner = torch.div(change, height * width, rounding_mode="floor")
        last = torch.arange(1, count + 1, device=masks.device) * (height * width)
        ends = torch.cat([change, last]).sort(stable=True).values
        runs = torch.bincount(owner, minlength=count) + 1
        # A mask that starts with 1 has a change at its very first pixel, whose end equals the end of the mask before: sorted after that one only
        # when both are kept in order, which equal values allow.
        return cls(ends, torch.cat([runs.new_zeros(1), runs.cumsum(0)]), (height, width))

    @classmethod
    def empty(cls, size: tuple[int, int], device: torch.device | str = "cpu") -> "RunLengthMasks":
        """No masks, of an image of `size`."""
        return cls(torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int64, device=device), size)

    @classmethod
    def cat(cls, parts: Sequence["RunLengthMasks"]) -> "RunLengthMasks":
        """The masks of all parts, in order. The parts (at least one) must be of one size. Raises DataError otherwise."""
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
        """Whether both hold the same masks (pixel for pixel), in the same order and on the same device."""
        if not isinstance(other, RunLengthMasks) or self.size != other.size or len(self) != len(other):
            return NotImplemented if not isinstance(other, RunLengthMasks) else False
        return self.to_counts() == other.to_counts()

    __hash__ = None  # type: ignore[assignment]

    def to(self, device: torch.device | str) -> "RunLengthMasks":
        """The masks on `device`."""
        return RunLengthMasks(self.ends.to(device, non_blocking=True), self.splits.to(device, non_blocking=True), self.size)

    def select(self, index: Tensor) -> "RunLengthMasks":
        """The masks at `index` (integers, any order, repeats allowed)."""
        lengths = (self.splits[1:] - self.splits[:-1])[index]
        splits = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=index.device), lengths)
        position = torch.arange(len(owner), device=index.device) - splits[owner] + self.splits[index][owner]
        shift = (owner - index[owner]) * (self.size[0] * self.size[1])
        return RunLengthMasks(self.ends[position] + shift, splits, self.size)

    # --- asking -------------------------------------------------------------------------------------------------------------------------

    def sample(self, points_xy: Tensor, index: Tensor | None = None) -> Tensor:
        """The masks' values at points.

        Args:
            points_xy: float source pixels (x, y): [P, 2] for the same points in all masks, or [K, P, 2], a row for each mask asked.
            index: [K] the masks asked, repeats allowed; None asks all N in order.

        Returns:
            bool [K, P] (K = N without `index`): whether the pixel that contains the point belongs to the mask; False outside the image.
        """
        height, width = self.size
        pixel = points_xy.floor().to(torch.int64)
        x, y = pixel[..., 0], pixel[..., 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        position = torch.where(inside, x * height + y, 0)
        asked = torch.arange(len(self), device=position.device) if index is None else index
        keys = position + asked[:, None] * (height * width)
        run = torch.searchsorted(self.ends, keys, right=True)
        return ((run - self.splits[asked, None]) % 2 == 1) & inside

    def _intervals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Runs of ones as (mask, first position, end position) in column-major positions of the mask; empty runs included."""
        starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]]) if len(self.ends) else self.ends
        owner = torch.repeat_interleave(torch.arange(len(self), device=self.ends.device), self.splits[1:] - self.splits[:-1])
        ones = (torch.arange(len(self.ends), device=self.ends.device) - self.splits[owner]) % 2 == 1
        owner = owner[ones]
        shift = owner * (self.size[0] * self.size[1])
        return owner, starts[ones] - shift, self.ends[ones] - shift

    def area(self) -> Tensor:
        """Pixels of each mask, int64 [N]."""
        owner, starts, ends = self._intervals()
        return torch.zeros(len(self), dtype=torch.int64, device=self.ends.device).index_add_(0, owner, ends - starts)

    def boxes_xyxy(self) -> Tensor:
        """Tight boxes, int64 [N, 4] (x0, y0, x1, y1), x1 and y1 exclusive; zeros for an empty mask."""
        return self.visible((0.0, 0.0, float(self.size[1]), float(self.size[0])))[1]

    def visible(self, window_xyxy: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
        """Area and tight box of the part of each mask whose pixel centres lie in a window.

        Args:
            window_xyxy: window in source pixels, half-open; it may reach beyond the image.

        Returns:
            area int64 [N] and boxes int64 [N, 4] in source pixels (exclusive; zeros where nothing is visible).
        """
        height, width = self.size
        x0, y0, x1, y1 = (int(np.ceil(value - 0.5)) for value in window_xyxy)
        x0, x1 = max(x0, 0), min(x1, width)
        y0, y1 = max(y0, 0), min(y1, height)
        empty = torch.zeros(len(self), dtype=torch.int64, device=self.ends.device)
        if x0 >= x1 or y0 >= y1 or len(self) == 0:
            return empty, empty[:, None].repeat(1, 4)
        owner, starts, ends = self._intervals()
        starts, ends = starts.clamp(min=x0 * height), ends.clamp(max=x1 * height)
        kept = starts < ends
        owner, starts, ends = owner[kept], starts[kept], ends[kept]
        # Within the window's columns: count rows below y of all columns before a position, so that an interval's visible pixels are a difference.
        rows = y1 - y0
        first, last = _rows_before(starts, height, y0, y1), _rows_before(ends, height, y0, y1)
        area = empty.index_add(0, owner, last - first)
        shown = last > first
        owner, first, last = owner[shown], first[shown], last[shown]
        # `first` and `last` are column-major positions in a strip of `rows` rows: columns and rows of the visible part follow from them.
        column0, column1 = first // rows, (last - 1) // rows
        row0, row1 = first % rows, (last - 1) % rows
        spans = column1 > column0  # reaches over a column's border: touches the bottom row, then the top row
        row0, row1 = torch.where(spans, 0, row0), torch.where(spans, rows - 1, row1)
        lowest = torch.full((len(self), 2), torch.iinfo(torch.int64).max, device=owner.device)
        highest = torch.full((len(self), 2), -1, dtype=torch.int64, device=owner.device)
        index = owner[:, None].expand(-1, 2)
        lowest = lowest.scatter_reduce(0, index, torch.stack([column0, row0 + y0], 1), "amin")
        highest = highest.scatter_reduce(0, index, torch.stack([column1, row1 + y0], 1), "amax")
        boxes = torch.cat([lowest, highest + 1], dim=1)
        return area, torch.where((area > 0)[:, None], boxes, 0)

    def intersection(self, other: "RunLengthMasks") -> Tensor:
        """Pixels that mask i of self and mask j of other share, int64 [N, M]. Both must be of one size and on one device."""
        # Prefix area of every mask of `other` at every run border of self: the shared pixels of a run are a difference of two prefixes.
        owner, starts, ends = self._intervals()
        counts = torch.stack([other._prefix_area(ends) - other._prefix_area(starts)])[0] if len(other) else ends.new_zeros(0, len(ends))
        shared = torch.zeros(len(self), len(other), dtype=torch.int64, device=self.ends.device)
        return shared.index_add_(0, owner, counts.T)

    def _prefix_area(self, positions: Tensor) -> Tensor:
        """[N, P] int64: pixels of each mask before each column-major position."""
        pixels = self.size[0] * self.size[1]
        lengths = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        owner = torch.repeat_interleave(torch.arange(len(self), device=self.ends.device), self.splits[1:] - self.splits[:-1])
        ones = (torch.arange(len(self.ends), device=self.ends.device) - self.splits[owner]) % 2 == 1
        total = torch.cat([lengths.new_zeros(1), (lengths * ones).cumsum(0)])
        keys = positions + torch.arange(len(self), device=positions.device)[:, None] * pixels
        run = torch.searchsorted(self.ends, keys, right=True).clamp(max=len(self.ends) - 1)
        before = torch.where(run > 0, self.ends[(run - 1).clamp(min=0)], 0)
        partial = torch.where(ones[run], keys - before, 0)
        return total[run] + partial - total[self.splits[:-1]][:, None]

    def iou(self, other: "RunLengthMasks") -> Tensor:
        """Intersection over union, float64 [N, M]; 0 where both masks are empty."""
        shared = self.intersection(other).double()
        union = self.area().double()[:, None] + other.area().double() - shared
        return torch.where(union > 0, shared / union.clamp(min=1), 0.0)

    # --- writing ------------------------------------------------------------------------------------------------------------------------

    def to_dense(self) -> Tensor:
        """bool [N, h, w]."""
        height, width = self.size
        owner, starts, ends = self._intervals()
        steps = torch.zeros(len(self) * height * width + 1, dtype=torch.int8, device=self.ends.device)
        shift = owner * (height * width)
        kept = starts < ends
        steps.index_add_(0, (starts + shift)[kept], torch.ones_like(starts[kept], dtype=torch.int8))
        steps.index_add_(0, (ends + shift)[kept], -torch.ones_like(ends[kept], dtype=torch.int8))
        dense = steps[:-1].cumsum(0, dtype=torch.int8).bool()
        return dense.reshape(len(self), width, height).transpose(1, 2).contiguous()

    def to_counts(self) -> list[bytes]:
        """Compressed COCO counts of each mask, as pycocotools writes them (runs of no pixel are joined first)."""
        return [_encode_counts(runs) for runs in self._canonical_runs()]

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO RLE of each mask: ``{"size": [h, w], "counts": str}``."""
        return [{"size": list(self.size), "counts": counts.decode("ascii")} for counts in self.to_counts()]

    def _canonical_runs(self) -> list[NDArray[np.int64]]:
        owner, starts, ends = (tensor.cpu().numpy() for tensor in self._intervals())
        kept = starts < ends
        owner, starts, ends = owner[kept], starts[kept], ends[kept]
        pixels, result = self.size[0] * self.size[1], []
        first = np.searchsorted(owner, np.arange(len(self) + 1))
        for begin, stop in zip(first[:-1], first[1:], strict=True):
            s, e = starts[begin:stop], ends[begin:stop]
            joined = np.flatnonzero(s[1:] == e[:-1])
            s, e = np.delete(s, joined + 1), np.delete(e, joined)
            borders = np.empty(2 * len(s) + 2, np.int64)
            borders[0], borders[-1] = 0, pixels
            borders[1:-1:2], borders[2:-1:2] = s, e
            runs = np.diff(borders)
            result.append(runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs)
        return result


def _rows_before(positions: Tensor, height: int, y0: int, y1: int) -> Tensor:
    """Pixels with y0 <= y < y1 before a column-major position of a column of `height`."""
    return positions // height * (y1 - y0) + (positions % height).clamp(y0, y1) - y0


def _decode_counts(characters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths of all masks and the index of each mask's first run, from compressed characters."""
    codes = characters.astype(np.int64) - 48
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        at = int(np.argmax((codes < 0) | (codes > 63)))
        mask = int(np.searchsorted(offsets, at, side="right")) - 1
        raise DataError(f"mask {mask} has a character that is no run-length code", seen=bytes(characters[at : at + 1]), allowed="'0' to 'o'")
    closes = (codes & 32) == 0
    cut = np.flatnonzero((np.diff(offsets) > 0) & ~closes[np.maximum(offsets[1:] - 1, 0)]) if len(codes) else np.zeros(0, np.int64)
    if len(cut):
        raise DataError(f"the counts of mask {cut[0]} end inside a value", seen=bytes(characters[offsets[cut[0] + 1] - 1 :][:1]))
    value_end = np.flatnonzero(closes)
    value_start = np.concatenate([np.zeros(1, np.int64), value_end[:-1] + 1])[: len(value_end)]
    group = np.arange(len(codes)) - np.repeat(value_start, value_end - value_start + 1)
    if len(group) and group.max() > 11:
        raise DataError("a run-length value has too many characters", seen=int(group.max()) + 1, allowed="at most 12")
    values = np.add.reduceat((codes & 31) << (5 * group), value_start) if len(value_start) else np.zeros(0, np.int64)
    negative = (codes[value_end] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (value_end - value_start + 1)), 0)
    splits = np.searchsorted(value_end, offsets, side="left")
    return _undo_differences(values, splits), splits


def _undo_differences(values: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the fourth value of a mask on, each is a difference to the value two before: prefix sums over every second value undo that."""
    lengths = np.diff(splits)
    index = np.arange(len(values)) - np.repeat(splits[:-1], lengths)
    counts = values.copy()
    for parity in (0, 1):
        chosen = np.flatnonzero((index % 2 == parity) & (index > 0))
        if not len(chosen):
            continue
        sums = np.cumsum(values[chosen])
        starts = np.flatnonzero((index[chosen] == 1) | (index[chosen] == 2))
        before = np.concatenate([np.zeros(1, np.int64), sums])[starts]
        counts[chosen] = sums - np.repeat(before, np.diff(np.concatenate([starts, [len(chosen)]])))
    return counts


def _encode_counts(runs: NDArray[np.int64]) -> bytes:
    """Compress run lengths as pycocotools does: differences to the value two before from the fourth on, 5-bit groups, low bits first."""
    values = runs.copy()
    values[3:] -= runs[1:-2]
    # A group is the last when what remains is only sign: 0 with bit 4 clear, or -1 with bit 4 set.
    shifts = np.arange(13) * 5
    groups = (values[:, None] >> shifts) & 31
    rest = values[:, None] >> (shifts + 5)
    done = np.where(groups & 16, rest == -1, rest == 0)
    last = done.argmax(axis=1)
    used = np.arange(13) <= last[:, None]
    more = np.arange(13) < last[:, None]
    return bytes((groups + 32 * more + 48).astype(np.uint8)[used])
