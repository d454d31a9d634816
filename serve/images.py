"""What can be known of an image file without decoding it: its kind and its size, read from the header in plain Python."""

import base64
import re
import struct
from typing import Literal

from serve.problems import ServiceError
from uniovseg.api import Limits

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")

UPRIGHT = 1
"""EXIF orientation of an image whose first row is at the top and whose first column is at the left."""

_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4})(II\*\0|MM\0\*)", re.DOTALL)  # of JPEG, PNG and WebP, and the head of the TIFF file in it
_EXIF_BYTES = 64 * 1024
_ORIENTATION_TAG = 0x0112

_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame; the others of the range are tables
_JPEG_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels that the header of a JPEG, PNG or WebP file names.

    Raises:
        ServiceError: the bytes are none of the three, or end before their size is known, or name no pixels.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = _png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        size = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = _webp(data)
    else:
        raise ServiceError("invalid_image", "the bytes are no image of a known kind", seen=_start(data), allowed="JPEG, PNG, WebP")
    if size is None or 0 in size:
        raise ServiceError("invalid_image", "the image's header cannot be read", seen=_start(data), allowed="a whole JPEG, PNG or WebP file")
    return size


def orientation(data: bytes) -> int:
    """EXIF orientation of a JPEG, PNG or WebP file, which its pixels do not follow: `UPRIGHT`, or 2 to 8 for turned or mirrored.

    `UPRIGHT` too where the file says nothing of it that can be read.
    """
    found = _EXIF.search(data)
    if found is None:
        return UPRIGHT
    tiff = data[found.start(1) : found.start(1) + _EXIF_BYTES]
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def check_image(data: bytes, limits: Limits) -> tuple[int, int]:
    """The image's (height, width), once its bytes, sides and pixels are within the limits. Raises ServiceError."""
    if len(data) > limits.bytes:
        raise ServiceError("too_large", "the image file is too large, in bytes", seen=len(data), allowed=limits.bytes)
    height, width = image_size(data)
    if max(height, width) > limits.side:
        raise ServiceError("too_large", "the image is too long or wide, in pixels", seen=f"{width} x {height}", allowed=f"sides to {limits.side}")
    if height * width > limits.pixels:
        raise ServiceError("too_large", "the image has too many pixels", seen=f"{width} x {height} = {height * width}", allowed=limits.pixels)
    return height, width


def base64_length(limits: Limits) -> int:
    """Characters of the largest image in base64."""
    return 4 * (limits.bytes // 3 + 1)


def from_base64(text: str, limits: Limits) -> bytes:
    """The file of an image in base64, which is not longer than the limit allows. Raises ServiceError."""
    if len(text) > base64_length(limits):
        raise ServiceError("too_large", "the image file is too large, in bytes", seen=len(text) * 3 // 4, allowed=limits.bytes)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's and that of characters beyond ASCII
        raise ServiceError("invalid_image", "the image is not base64", seen=text[:40], allowed="standard base64") from error


def _start(data: bytes) -> str:
    return f"{len(data)} bytes starting {data[:8].hex(' ') or 'with nothing'}"


def _png(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        elif marker in _JPEG_SIZES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2 or marker in (0xD9, 0xDA):
                return None
            at += 2 + length
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return None
