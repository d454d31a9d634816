"""Image bytes to pixels."""

import cv2
import numpy as np
from numpy.typing import NDArray

from uniovseg.errors import DataError

# OpenCV has no name for a reduced size in RGB order: the reduced grey flag asks for the size, the RGB flag overrules the grey.
_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode_image(data: bytes, shrink: int = 1) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or other common image to RGB, with its EXIF orientation ignored: masks are annotated on the pixels as stored.

    Args:
        data: the encoded image.
        shrink: 1, 2, 4 or 8: decode at this fraction of the size, which a JPEG decoder does at less cost than decoding everything. See `shrink_for`.

    Returns:
        [ceil(H / shrink), ceil(W / shrink), 3].

    Raises:
        DataError: the bytes are no image.
    """
    flags = _FLAGS[shrink] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise DataError("the image cannot be decoded", seen=" ".join(str(error).split()), allowed="at most 2^30 pixels") from error
    if decoded is None:
        raise DataError("the image cannot be decoded", seen=f"{len(data)} bytes starting {data[:8]!r}", allowed="JPEG, PNG, WebP, BMP, TIFF")
    return decoded.astype(np.uint8, copy=False)


def shrink_for(data: bytes, height: int, width: int, scale: float) -> int:
    """How much smaller an image can be decoded when a view takes one pixel of every `scale` a side: 1, 2, 4 or 8.

    Only a JPEG is decoded smaller, which averages its pixels in the frequency domain: on photographs within a level or so of averaging them after decoding.
    Only a factor that divides both sides is used, because a pixel of the reduced image then covers whole pixels of the source, exactly; and none above
    `scale`, so that the image is never enlarged again.
    """
    if not data.startswith(b"\xff\xd8"):
        return 1
    return max(shrink for shrink in _FLAGS if shrink <= max(scale, 1.0) and height % shrink == 0 and width % shrink == 0)
