"""Label maps: images of one channel whose values are classes, 8 or 16 bit, PNG or TIFF."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from uniovseg.errors import DataError

ENDINGS = (".png", ".tif", ".tiff")
"""Names of label maps end so."""


def decode_labels(data: bytes) -> NDArray[np.int32]:
    """The values [H, W] of a label map; of a palette image they are the indices. Raises DataError for an image of colours, or no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            values = np.asarray(image)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError("the label map cannot be decoded", seen=f"{len(data)} bytes", allowed="PNG or TIFF") from error
    if values.ndim != 2 or values.dtype.kind == "f":
        raise DataError(
            "the label map is not one of integers", seen=f"mode {mode}, {values.dtype} of shape {values.shape}", allowed="one channel, 8 or 16 bit"
        )
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError("a label is out of range", seen=f"{values.min()} to {values.max()}", allowed="0 to 65535")
    return values.astype(np.int32)


def encode_labels(labels: NDArray[np.integer]) -> bytes:
    """A PNG of labels [H, W] in 0 to 65535: 8 bit where all are below 256, else 16 bit. An array of uint16 gives 16 bit in any case."""
    largest = int(labels.max(initial=0))
    if labels.min(initial=0) < 0 or largest > 65535:
        raise DataError("labels do not fit a PNG", seen=f"{labels.min()} to {largest}", allowed="0 to 65535")
    done, data = cv2.imencode(".png", labels.astype(np.uint8 if largest < 256 and labels.dtype != np.uint16 else np.uint16))
    assert done
    return data.tobytes()
