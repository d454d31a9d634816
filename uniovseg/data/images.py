"""Image bytes to pixels."""

import cv2
import numpy as np
from numpy.typing import NDArray

from uniovseg.errors import DataError


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or other common image to RGB [H, W, 3].

    EXIF orientation is ignored: masks are annotated on the pixels as stored. Raises DataError when the bytes are no image.
    """
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    if decoded is None:
        raise DataError("the image cannot be decoded", seen=f"{len(data)} bytes starting {data[:8]!r}", allowed="JPEG, PNG, WebP, BMP, TIFF")
    return decoded.astype(np.uint8, copy=False)
