"""Image-text pairs: Parquet files, webdataset tars, COCO captions; each pair checked before it is trusted.

A source is read in ranges, so that tasks can share it: the rows of some row groups, a byte range of a tar, some images of a COCO set.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uniovseg import storage
from uniovseg.data.sa1b import IMAGE_ENDINGS, DefectError, check_image
from uniovseg.data.tar import TarDamage, read_samples
from uniovseg.errors import DataError, MissingFileError
from uniovseg.records import ImageText, Rejected
from uniovseg.storage import Location

COLUMNS = ("key", "image", "caption")
"""What a Parquet file of pairs must have: two texts, and the encoded image as binary."""

CAPTION_KEYS = ("caption", "text")
"""Where the JSON of a webdataset sample has its caption."""

Pair = tuple[int, ImageText | Rejected]
"""A pair with its offset in the source: the row, the byte, or the image's number."""


def parquet_ranges(source: str, rows: int) -> list[tuple[int, int]]:
    """Row ranges [begin, end) of whole row groups, about `rows` rows each.

    Raises:
        DataError: not a Parquet file, or not of pairs.
    """

    try:
        metadata = _metadata(source)
    except pa.ArrowInvalid as error:
        raise DataError("not a Parquet file", seen=f"{source}: {error}") from error
    columns = metadata.schema.to_arrow_schema()
    if missing := [name for name in COLUMNS if name not in columns.names]:
        raise DataError(f"no column {', '.join(missing)}", seen=f"{source}: {', '.join(columns.names)}", allowed=f"columns {', '.join(COLUMNS)}")
    if not (pa.types.is_binary(columns.field("image").type) or pa.types.is_large_binary(columns.field("image").type)):
        raise DataError("the column image does not hold files", seen=f"{source}: {columns.field('image').type}", allowed="binary")
    ranges: list[tuple[int, int]] = []
    begin = end = 0
    for group in range(metadata.num_row_groups):
        end += metadata.row_group(group).num_rows
        if end - begin >= rows or (group == metadata.num_row_groups - 1 and end > begin):
            ranges.append((begin, end))
            begin = end
    return ranges


def _metadata(source: str) -> pq.FileMetaData:
    def read() -> pq.FileMetaData:
        filesystem, path = Location(source).filesystem()
        with filesystem.open_input_file(path) as file:
            return pq.read_metadata(file)

    return storage.with_retries(read, f"reading {source}")


def read_parquet(source: str, begin: int, end: int) -> Iterator[Pair]:
    """The pairs of a range that `parquet_ranges` gave. Raises StorageError when the file cannot be read."""

    def group_table(group: int) -> pa.Table:
        filesystem, path = Location(source).filesystem()
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file, pre_buffer=True).read_row_group(group, list(COLUMNS))

    metadata = _metadata(source)
    row = 0
    for group in range(metadata.num_row_groups):
        if begin <= row < end:
            table = storage.with_retries(lambda group=group: group_table(group), f"reading {source}")  # type: ignore[misc]
            columns = [table.column(name) for name in COLUMNS]
            for number in range(len(table)):
                key, image, caption = (column[number].as_py() for column in columns)
                yield row + number, _checked(str(key), image, caption, source, row + number)
        row += metadata.row_group(group).num_rows


def read_tar(source: str, size: int, begin: int, end: int) -> Iterator[Pair]:
    """The pairs of a byte range of a webdataset tar of `size` bytes: an image, and its caption in ``.txt`` or in the ``.json``.

    Raises:
        StorageError: the tar cannot be read on.
    """
    for item in read_samples(source, size, begin, end):
        if isinstance(item, TarDamage):
            yield item.offset, Rejected(key=item.key, source=source, offset=item.offset, reason="damaged_tar", detail=item.detail)
            continue
        image = next((item.files[ending] for ending in IMAGE_ENDINGS if ending in item.files), None)
        try:
            caption = _caption_of(item.files)
        except DefectError as defect:
            yield item.offset, _rejected(item.key, source, item.offset, defect)
            continue
        yield item.offset, _checked(item.key, image, caption, source, item.offset)


@dataclass(frozen=True, slots=True)
class CocoCaption:
    """One image of a COCO set with its caption, not yet read."""

    key: str
    image: Location
    caption: str


def coco_captions(annotations: str, images: str, per_image: int) -> list[CocoCaption]:
    """The images of a COCO captions JSON, in its order, each with its first `per_image` captions as sentences of one.

    Raises:
        DataError: the file is not COCO JSON with captions.
    """
    location = Location.of(annotations)
    try:
        parsed = json.loads(storage.read_bytes(location))
        captions: dict[str, list[str]] = {str(entry["id"]): [] for entry in parsed["images"]}
        for note in parsed["annotations"]:
            captions[str(note["image_id"])].append(note["caption"])
        return [
            CocoCaption(
                key=entry["file_name"].rpartition(".")[0] or entry["file_name"],
                image=Location.of(images) / entry["file_name"],
                caption=join_sentences(captions[str(entry["id"])][:per_image]),
            )
            for entry in parsed["images"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "not a COCO captions file", seen=f"{location.uri}: {type(error).__name__} {error}", allowed="images, annotations with captions"
        ) from error


def join_sentences(captions: Sequence[str]) -> str:
    """Captions of one image as one text, each ending in a full stop."""
    sentences = [" ".join(caption.split()).rstrip(".") for caption in captions]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def read_coco(items: Sequence[CocoCaption], begin: int) -> Iterator[Pair]:
    """The pairs of images whose numbers start at `begin`. Raises StorageError when a file is there but cannot be read."""
    for number, item in enumerate(items, start=begin):
        try:
            image = storage.read_bytes(item.image)
        except MissingFileError as error:
            yield number, Rejected(key=item.key, source=item.image.uri, offset=number, reason="missing_image", detail=str(error))
            continue
        yield number, _checked(item.key, image, item.caption, item.image.uri, number)


def list_sources(uri: str | Path, ending: str) -> list[Location]:
    """The file itself, or the files of a folder with this ending. Raises DataError when there is none."""
    location = Location.of(uri)
    found = [location] if location.uri.endswith(ending) else storage.list_files(location, ending)
    if not found:
        raise DataError("no image-text pairs", seen=location.uri, allowed=f"a {ending} file, or a folder with {ending} files")
    return found


def _caption_of(files: Mapping[str, bytes]) -> str | None:
    if "txt" in files:
        return files["txt"].decode("utf-8", "replace")
    if "json" not in files:
        return None
    try:
        parsed = json.loads(files["json"])
    except (ValueError, RecursionError) as error:
        raise DefectError("bad_json", "the JSON beside the image does not parse", seen=str(error)) from error
    if not isinstance(parsed, dict):
        raise DefectError("bad_json", "the JSON beside the image is not an object", seen=type(parsed).__name__)
    return next((parsed[key] for key in CAPTION_KEYS if isinstance(parsed.get(key), str)), None)


def _checked(key: str, image: bytes | None, caption: str | None, source: str, offset: int) -> ImageText | Rejected:
    try:
        if image is None:
            raise DefectError("missing_image", "no image beside the caption", allowed=", ".join(IMAGE_ENDINGS))
        if caption is None or not any(letter.isalpha() for letter in caption):
            raise DefectError("missing_caption", "no caption beside the image", seen=None if caption is None else repr(caption[:80]))
        check_image(image, decode=False)
    except DefectError as defect:
        return _rejected(key, source, offset, defect)
    return ImageText(key=key, image=image, caption=caption)


def _rejected(key: str, source: str, offset: int, defect: DefectError) -> Rejected:
    return Rejected(key=key, source=source, offset=offset, reason=defect.reason, detail=str(defect)[:300])
