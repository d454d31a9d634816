import io
import json
import struct
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.data.sa1b_samples import DAMAGES, make_files, make_record
from uniovseg.data.reasons import REASONS
from uniovseg.data.sa1b import DefectError, check_image, parse_sample
from uniovseg.records import ImageMasks, Rejected


def parse(files: dict[str, bytes], *, decode: bool = False) -> ImageMasks | Rejected:
    return parse_sample(files, "sa_7", "a.tar", 1024, decode=decode)


def test_a_good_sample_is_taken_as_it_is() -> None:
    record = make_record(7)
    assert parse(make_files(7)) == record
    assert parse(make_files(7), decode=True) == record


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_are_rejected_with_their_reason(name: str) -> None:
    reason, damage = DAMAGES[name]
    found = parse(damage(make_files(7)))
    assert isinstance(found, Rejected)
    assert (found.key, found.source, found.offset, found.reason) == ("sa_7", "a.tar", 1024, reason)
    assert reason in REASONS and found.detail and "\n" not in found.detail


@pytest.mark.parametrize(
    "annotation",
    [
        b"[]",
        b"7",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"image": {"height": 24, "width": 32}, "annotations": [{}]}',
        b'{"annotations": [], "image": null}',
        b'{"image": {"height": 24, "width": 32}, "annotations": [{"predicted_iou": 1%s, "segmentation": {"size": [24, 32]}}]}' % (b"0" * 400),
    ],
)
def test_strange_json_is_rejected_and_nothing_is_raised(annotation: bytes) -> None:
    found = parse(make_files(7) | {"json": annotation})
    assert isinstance(found, Rejected)
    assert found.reason == "bad_json"


def test_a_size_that_is_none_is_rejected_and_nothing_is_raised() -> None:
    found = parse(make_files(7) | {"json": b'{"image": {"height": [1], "width": {}}, "annotations": []}'})
    assert isinstance(found, Rejected)
    assert found.reason == "size_mismatch" and "seen: [([1], {})]" in found.detail


@pytest.mark.parametrize("counts", ["", "~", "é", 7, None, ["a"], [1.5], [[1]], [-1, 769], [2**70], "P" * 30])
def test_strange_counts_are_rejected_and_nothing_is_raised(counts: object) -> None:
    files = make_files(7)
    parsed = json.loads(files["json"])
    parsed["annotations"][0]["segmentation"]["counts"] = counts
    found = parse(files | {"json": json.dumps(parsed).encode()})
    assert isinstance(found, Rejected)
    assert found.reason == "bad_mask"


def test_uncompressed_counts_are_compressed() -> None:
    files = make_files(7)
    parsed = json.loads(files["json"])
    runs = [5, 10, 753]
    parsed["annotations"] = [{"segmentation": {"size": [24, 32], "counts": runs}}, *parsed["annotations"]]
    found = parse(files | {"json": json.dumps(parsed).encode()})
    assert isinstance(found, ImageMasks)
    expected = coco_mask.frPyObjects({"size": [24, 32], "counts": runs}, 24, 32)["counts"]
    assert found.counts == (expected, *make_record(7).counts)
    assert found.predicted_iou[0] != found.predicted_iou[0]  # NaN: the source has none


def encode(kind: str, size: tuple[int, int], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_sizes_come_from_the_jpeg_header(progressive: bool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 3000  # a long segment before the frame header
    data = encode("JPEG", (37, 21), progressive=progressive, exif=exif)
    assert check_image(data, decode=True) == (21, 37)
    assert check_image(data + b"\0\0", decode=False) == (21, 37)  # padding after the end marker


def test_sizes_come_from_the_png_header() -> None:
    data = encode("PNG", (37, 21))
    assert check_image(data, decode=True) == (21, 37)
    with pytest.raises(DefectError, match="no end chunk"):
        check_image(data[:-12], decode=False)


def test_every_cut_of_a_jpeg_is_found_by_its_markers() -> None:
    data = encode("JPEG", (37, 21))
    for length in range(len(data)):
        with pytest.raises(DefectError):
            check_image(data[:length], decode=False)


def test_decoding_finds_what_markers_do_not() -> None:
    data = bytearray(encode("JPEG", (37, 21)))
    at = data.index(b"\xff\xc0")
    data[at + 2 : at + 4] = struct.pack(">H", 9)  # a frame header that is too short: its size can be read, but no decoder takes it
    assert check_image(bytes(data), decode=False) == (21, 37)
    with pytest.raises(DefectError) as caught:
        check_image(bytes(data), decode=True)
    assert caught.value.reason == "bad_image"
