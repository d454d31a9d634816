import io

import numpy as np
import pytest
from PIL import Image

from uniovseg.data.label_maps import decode_labels, encode_labels
from uniovseg.errors import DataError


@pytest.mark.parametrize("largest", [0, 255, 256, 65535])
def test_what_is_written_is_read_again(largest: int) -> None:
    labels = np.arange(12).reshape(3, 4) % (largest + 1)
    labels[0, 0] = largest
    data = encode_labels(labels)
    assert decode_labels(data).tolist() == labels.tolist()
    assert np.asarray(Image.open(io.BytesIO(data))).itemsize == (1 if largest < 256 else 2)


def test_uint16_stays_16_bit_whatever_its_values() -> None:
    assert np.asarray(Image.open(io.BytesIO(encode_labels(np.zeros((2, 3), np.uint16))))).itemsize == 2


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_labels_that_fit_no_png_are_refused(wrong: int) -> None:
    with pytest.raises(DataError, match="0 to 65535"):
        encode_labels(np.array([[wrong]]))


def encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def test_sixteen_bit_tiff() -> None:
    labels = np.array([[0, 846], [65535, 300]], np.uint16)
    assert decode_labels(encoded(Image.fromarray(labels), "TIFF")).tolist() == labels.tolist()


def test_a_palette_gives_its_indices() -> None:
    image = Image.fromarray(np.array([[0, 1], [20, 255]], np.uint8), "P")
    image.putpalette([channel for index in range(256) for channel in (255 - index, index, 7)])
    assert decode_labels(encoded(image, "PNG")).tolist() == [[0, 1], [20, 255]]


def test_pictures_and_other_bytes_are_refused() -> None:
    with pytest.raises(DataError, match=r"seen: mode RGB, uint8 of shape \(2, 2, 3\)"):
        decode_labels(encoded(Image.new("RGB", (2, 2)), "PNG"))
    with pytest.raises(DataError, match="cannot be decoded; seen: 3 bytes"):
        decode_labels(b"abc")
    with pytest.raises(DataError, match="a label is out of range; seen: 0 to 70000"):
        decode_labels(encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))
