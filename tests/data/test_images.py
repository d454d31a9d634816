import io
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uniovseg.data.images import decode_image, shrink_for
from uniovseg.errors import DataError


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some texture, much like a photograph to a JPEG encoder."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(0, 255, (5, 7, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(image: NDArray[np.uint8], form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_decodes_to_rgb_as_pillow_does(form: str) -> None:
    data = encoded(picture(40, 60), form)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    found = decode_image(data)
    assert found.dtype == np.uint8 and found.shape == (40, 60, 3)
    assert np.abs(found.astype(int) - expected).max() <= (0 if form == "PNG" else 3)


def test_grey_images_become_rgb() -> None:
    grey = picture(20, 30)[..., 0]
    assert np.array_equal(decode_image(encoded(grey, "PNG")), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("shrink", [1, 2])
def test_the_orientation_in_exif_is_ignored(shrink: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    turned = encoded(picture(40, 60), "JPEG", exif=exif)
    assert np.array_equal(decode_image(turned, shrink), decode_image(encoded(picture(40, 60), "JPEG"), shrink))


@pytest.mark.parametrize("data", [b"", b"no image", encoded(picture(8, 8), "PNG")[:30]])
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match="the image cannot be decoded"):
        decode_image(data)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_reduced_jpeg_is_the_image_averaged(shrink: int) -> None:
    data = encoded(picture(160, 240), "JPEG", quality=92)
    full, reduced = decode_image(data).astype(float), decode_image(data, shrink)
    averaged = full.reshape(160 // shrink, shrink, 240 // shrink, shrink, 3).mean((1, 3))
    assert reduced.shape == averaged.shape
    assert np.abs(reduced - averaged).mean() < 1.0
    shifted = np.abs(reduced[1:, 1:] - averaged[:-1, :-1]).mean()
    assert np.abs(reduced - averaged).mean() < shifted / 3  # in place, not half a pixel off


@pytest.mark.skipif("UNIOVSEG_REAL_DATA" not in os.environ, reason="UNIOVSEG_REAL_DATA is not set: real photographs are not compared")
def test_reduced_photographs_are_the_photographs_averaged() -> None:
    paths = sorted((Path(os.environ["UNIOVSEG_REAL_DATA"]) / "coco128").rglob("*.jpg"))[:24]
    compared = 0
    for path in paths:
        data = path.read_bytes()
        full = decode_image(data)
        if full.shape[0] % 2 or full.shape[1] % 2:
            continue
        averaged = cv2.resize(full, (full.shape[1] // 2, full.shape[0] // 2), interpolation=cv2.INTER_AREA)
        assert np.abs(decode_image(data, 2).astype(float) - averaged).mean() < 1.0, path
        compared += 1
    assert compared > 5


def test_an_image_that_claims_too_many_pixels_is_refused() -> None:
    data = bytearray(encoded(picture(8, 8), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")  # of the header, whose first field is the size
    with pytest.raises(DataError, match="cannot be decoded; seen: .*PIXELS.*; allowed: at most 2"):
        decode_image(bytes(data))


def test_shrink_for_takes_the_largest_exact_factor() -> None:
    jpeg, png = encoded(picture(8, 8), "JPEG"), encoded(picture(8, 8), "PNG")
    assert shrink_for(jpeg, 1600, 2400, 2.0) == 2
    assert shrink_for(jpeg, 1600, 2400, 1.99) == 1
    assert shrink_for(jpeg, 1600, 2400, 7.9) == 4
    assert shrink_for(jpeg, 1600, 2400, 100.0) == 8
    assert shrink_for(jpeg, 1600, 2400, 0.4) == 1  # an image that is enlarged
    assert shrink_for(jpeg, 1500, 2250, 9.0) == 2  # 4 divides one side only
    assert shrink_for(jpeg, 1501, 2250, 9.0) == 1
    assert shrink_for(png, 1600, 2400, 9.0) == 1
