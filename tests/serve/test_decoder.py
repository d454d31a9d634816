"""Images are decoded as the library does it; whatever else a file does, it costs no more than the child that looked at it."""

import os
import signal
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from serve.decoder import Decoder
from serve.images import image_size
from serve.problems import ServiceError
from tests.serve.conftest import encoded
from uniovseg.data.images import decode_image


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    made = Decoder(200_000, 60.0)
    yield made
    made.close()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_images_are_as_the_library_decodes_them(decoder: Decoder, picture: NDArray[np.uint8], form: str) -> None:
    data = encoded(picture, form)
    assert np.array_equal(decoder.decode(data, (60, 90)), decode_image(data))


def test_the_child_stays_for_good_images_and_for_those_that_cannot_be_decoded(decoder: Decoder, png: bytes) -> None:
    child = decoder.start().pid
    decoder.decode(png, (60, 90))
    with pytest.raises(ServiceError, match="cannot be decoded"):
        decoder.decode(png[:60], (60, 90))
    decoder.decode(png, (60, 90))
    assert decoder.start().pid == child


def test_another_size_than_the_header_said_is_refused(decoder: Decoder, png: bytes) -> None:
    with pytest.raises(ServiceError, match="another size"):
        decoder.decode(png, (60, 91))
    assert decoder.decode(png, (60, 90)).shape == (60, 90, 3)


def test_a_child_that_dies_is_replaced(decoder: Decoder, png: bytes) -> None:
    child = decoder.start()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert decoder.decode(png, (60, 90)).shape == (60, 90, 3)
    assert decoder.start().pid != child.pid


def bomb(side: int) -> bytes:
    """A valid small PNG of side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes((1 + 3 * side) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_that_takes_more_memory_than_the_child_has_is_refused(decoder: Decoder, png: bytes) -> None:
    data = bomb(20_000)  # 1.2 GB decoded; a header that was let through must not matter
    assert image_size(data) == (20_000, 20_000) and len(data) < 2_000_000
    with pytest.raises(ServiceError) as raised:
        decoder.decode(data, (20_000, 20_000))
    assert raised.value.refusal.code == "invalid_image"
    assert decoder.decode(png, (60, 90)).shape == (60, 90, 3)


def test_an_image_that_takes_too_long_ends_its_child(picture: NDArray[np.uint8]) -> None:
    data = bomb(3000)
    hasty = Decoder(9_000_000, 1e-6)
    with pytest.raises(ServiceError, match="within the time"):
        hasty.decode(data, (3000, 3000))
    hasty.seconds = 60.0
    assert hasty.decode(encoded(picture), (60, 90)).shape == (60, 90, 3)
    hasty.close()


def test_damaged_files_are_decoded_or_refused(decoder: Decoder, picture: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "WEBP"):
        good = np.frombuffer(encoded(picture, form), np.uint8)
        for _ in range(40):
            bad = good.copy()
            at = rng.integers(0, len(bad), 4)
            bad[at] ^= rng.integers(1, 256, 4, dtype=np.uint8)
            try:
                size = image_size(bad.tobytes())
                assert decoder.decode(bad.tobytes(), size).shape == (*size, 3)
            except ServiceError as error:
                assert error.refusal.code == "invalid_image"
    assert decoder.decode(encoded(picture), (60, 90)).shape == (60, 90, 3)
