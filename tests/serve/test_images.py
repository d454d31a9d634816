"""The size in a header is what the decoders find, and what is no image is refused before it is decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from serve.images import UPRIGHT, check_image, image_size, orientation
from serve.problems import ServiceError
from uniovseg.api import Limits

NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def written(form: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


FILES = [
    written("PNG"),
    written("PNG", "L"),
    written("PNG", "P"),
    written("JPEG"),
    written("JPEG", "L", progressive=True),
    written("JPEG", "CMYK", quality=20),
    written("JPEG", exif=b"Exif\0\0" + bytes(3000), icc_profile=bytes(5000), comment=b"a comment"),
    written("WEBP"),
    written("WEBP", lossless=True),
    written("WEBP", "RGBA", exact=True),
    written("WEBP", icc_profile=bytes(200)),
]


@pytest.mark.parametrize("number", range(len(FILES)))
def test_sizes(number: int) -> None:
    assert image_size(FILES[number]) == (37, 53)


@pytest.mark.parametrize("number", range(len(FILES)))
def test_cut_files_have_their_size_or_are_refused(number: int) -> None:
    data = FILES[number]
    for end in [*range(min(len(data), 400)), *range(400, len(data), 97)]:
        try:
            assert image_size(data[:end]) == (37, 53)
        except ServiceError as error:
            assert error.refusal.code == "invalid_image"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientations(form: str) -> None:
    for turned in range(1, 9):
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "maker", turned
        data = written(form, exif=exif)
        assert orientation(data) == turned
        for end in range(0, len(data), 7):
            assert 1 <= orientation(data[:end]) <= 8
        assert orientation(b"Exif\0\0 eXIf EXIF" + data) == turned
    exif[0x0112] = 9
    assert orientation(written(form, exif=exif)) == orientation(written(form)) == UPRIGHT


@pytest.mark.parametrize("number", range(len(FILES)))
def test_files_without_orientation_are_upright(number: int) -> None:
    assert orientation(FILES[number]) == UPRIGHT


def test_bytes_that_are_no_image() -> None:
    noise = np.random.default_rng(1)
    for start in (b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8L", b"RIFF\0\0\0\0WEBPALPH"):
        for length in (0, 1, 10, 100, 1000):
            try:
                height, width = image_size(start + noise.bytes(length))
            except ServiceError as error:
                assert error.refusal.code == "invalid_image"
            else:
                assert height > 0 and width > 0


@pytest.mark.parametrize(
    ("limits", "what"),
    [(Limits(bytes=100), "bytes"), (Limits(side=52), "long or wide"), (Limits(pixels=37 * 53 - 1), "pixels")],
)
def test_limits(limits: Limits, what: str) -> None:
    with pytest.raises(ServiceError, match=what) as raised:
        check_image(FILES[0], limits)
    assert raised.value.refusal.code == "too_large"
    assert check_image(FILES[0], Limits(bytes=len(FILES[0]), side=53, pixels=37 * 53)) == (37, 53)


def test_a_header_of_many_pixels_is_refused_however_small_the_file() -> None:
    buffer = io.BytesIO()
    Image.new("1", (60_000, 60_000)).save(buffer, "PNG")
    with pytest.raises(ServiceError, match="long or wide"):
        check_image(buffer.getvalue(), Limits())
