"""SA-1B samples: an image file and a JSON of COCO run-length masks, checked before they are trusted.

Checks that decode nothing: the JPEG's markers, end and size; the JSON; every mask's counts against h * w.
"""

import json
from collections.abc import Mapping
from typing import Any

from uniovseg.data.images import decode_image
from uniovseg.errors import DataError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImageMasks, Rejected

IMAGE_ENDINGS = ("jpg", "jpeg", "png")


class DefectError(DataError):
    """A sample that must be rejected, with its reason from `uniovseg.data.reasons`."""

    def __init__(self, reason: str, what: str, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.reason = reason


def parse_sample(files: Mapping[str, bytes], key: str, source: str, offset: int, *, decode: bool = False) -> ImageMasks | Rejected:
    """One sample from its files by ending (``jpg`` and ``json``).

    Args:
        files: member bytes by lower-case ending.
        key, source, offset: where the sample stands, for its identity and for a rejection.
        decode: decode the image as well. (The JPEG library mends what it can: bytes that are wrong inside an image need not show.)
    """
    try:
        image = next((files[ending] for ending in IMAGE_ENDINGS if ending in files), None)
        if image is None:
            raise DefectError("missing_image", "no image beside the annotation", allowed=", ".join(IMAGE_ENDINGS))
        if "json" not in files:
            raise DefectError("missing_annotation", "no .json beside the image")
        return _parse(image, files["json"], key, decode=decode)
    except DefectError as defect:
        return Rejected(key=key, source=source, offset=offset, reason=defect.reason, detail=str(defect)[:300])


def _parse(image: bytes, annotation: bytes, key: str, *, decode: bool) -> ImageMasks:
    height, width = check_image(image, decode=decode)
    try:
        parsed = json.loads(annotation)
        annotations = parsed["annotations"]
        said = (parsed["image"]["height"], parsed["image"]["width"])
        segmentations = [item["segmentation"] for item in annotations]
        sizes = {tuple(item["size"]) for item in segmentations}
        ious = tuple(float(item.get("predicted_iou", float("nan"))) for item in annotations)
        stability = tuple(float(item.get("stability_score", float("nan"))) for item in annotations)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DefectError("bad_json", "the annotation cannot be used", seen=f"{type(error).__name__}: {error}") from error
    if said != (height, width) or not sizes <= {(height, width)}:
        raise DefectError("size_mismatch", "the annotation is of another size", seen=[said, *sorted(sizes, key=str)][:3], allowed=(height, width))
    try:
        masks = RunLengthMasks.from_coco(segmentations, (height, width))
    except (DataError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DefectError("bad_mask", str(error)) from error
    compressed = all(isinstance(item["counts"], str) for item in segmentations)
    counts = [item["counts"].encode() for item in segmentations] if compressed else masks.to_counts()
    return ImageMasks(
        key=key, image=image, height=height, width=width, counts=tuple(counts), predicted_iou=ious, stability_score=stability
    )  # fmt: skip


def check_image(data: bytes, *, decode: bool) -> tuple[int, int]:
    """(h, w) of a JPEG or PNG file that is whole as far as its markers tell. Raises DefectError."""
    if data[:2] == b"\xff\xd8":
        size = _jpeg_size(data)
        if data.rstrip(b"\0")[-2:] != b"\xff\xd9":
            raise DefectError("truncated_image", "the JPEG has no end marker", seen=f"{len(data)} bytes")
    elif data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        size = (int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
        if b"IEND" not in data[-16:]:
            raise DefectError("truncated_image", "the PNG has no end chunk", seen=f"{len(data)} bytes")
    else:
        raise DefectError("bad_image", "neither a JPEG nor a PNG", seen=data[:8])
    if 0 in size:
        raise DefectError("bad_image", "the image has no size", seen=size)
    if decode:
        try:
            found = decode_image(data).shape[:2]
        except DataError as error:
            raise DefectError("bad_image", str(error)) from error
        if found != size:
            raise DefectError("size_mismatch", "the image decodes to another size than its header's", seen=found, allowed=size)
    return size


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments to the frame header (SOF), which holds the size."""
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            raise DefectError("bad_image", "the JPEG's segments are broken", seen=f"offset {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[position + 5 : position + 7], "big"), int.from_bytes(data[position + 7 : position + 9], "big")
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise DefectError("truncated_image", "the JPEG ends before its frame header", seen=f"{len(data)} bytes")
