import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sa1b_samples import make_record
from uniovseg.data.captions import COLUMNS, coco_captions, list_sources, parquet_ranges, read_coco, read_parquet, read_tar
from uniovseg.errors import DataError
from uniovseg.records import ImageText, Rejected

JPEG = make_record(0).image


def write_parquet(path: Path, rows: list[tuple[str, bytes | None, str | None]], group: int) -> str:
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    types = {"key": pa.string(), "image": pa.binary(), "caption": pa.string()}
    table = pa.table({"url": ["u"] * len(rows)} | {name: pa.array(list(values), types[name]) for name, values in columns.items()})
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def test_ranges_of_parquet_rows_are_whole_row_groups_and_cover_all(tmp_path: Path) -> None:
    rows: list[tuple[str, bytes | None, str | None]] = [(f"k{n}", JPEG + b"\xff\xd9", f"caption {n}") for n in range(17)]
    source = write_parquet(tmp_path / "a.parquet", rows, 3)
    assert parquet_ranges(source, 6) == [(0, 6), (6, 12), (12, 17)]
    assert parquet_ranges(source, 100) == [(0, 17)]
    assert parquet_ranges(source, 1) == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 17)]
    for size in (1, 4, 6, 100):
        found = [pair for begin, end in parquet_ranges(source, size) for pair in read_parquet(source, begin, end)]
        assert found == [(n, ImageText(key=key, image=image, caption=caption)) for n, (key, image, caption) in enumerate(rows) if image and caption]


def test_pairs_that_cannot_be_used_are_rejected_where_they_stand(tmp_path: Path) -> None:
    rows: list[tuple[str, bytes | None, str | None]] = [
        ("good", JPEG, "a dog"),
        ("a", None, "a dog"),
        ("b", JPEG, None),
        ("c", JPEG, " 12 "),
        ("d", b"GIF89a", "a dog"),
        ("e", JPEG[:-2], "a dog"),
    ]
    source = write_parquet(tmp_path / "a.parquet", rows, 10)
    (offset, good), *bad = read_parquet(source, 0, 6)
    assert isinstance(good, ImageText) and offset == 0
    expected = [("a", "missing_image"), ("b", "missing_caption"), ("c", "missing_caption"), ("d", "bad_image"), ("e", "truncated_image")]
    assert [(item.key, item.reason) for _, item in bad if isinstance(item, Rejected)] == expected
    assert [(item.offset, item.source) for _, item in bad if isinstance(item, Rejected)] == [(n, source) for n in range(1, 6)]


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column image, caption; seen: .*key, text"):
        parquet_ranges(str(tmp_path / "a.parquet"), 1)
    pq.write_table(pa.table({"key": ["a"], "image": ["path.jpg"], "caption": ["c"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="does not hold files"):
        parquet_ranges(str(tmp_path / "b.parquet"), 1)
    (tmp_path / "c.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="not a Parquet file"):
        parquet_ranges(str(tmp_path / "c.parquet"), 1)


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for ending, data in files.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_webdataset_samples_with_text_or_json_in_any_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(
        path,
        {
            "000": {"jpg": JPEG, "txt": "a café".encode()},
            "001": {"json": b'{"caption": "two dogs", "url": "u"}', "jpg": JPEG},
            "002": {"jpg": JPEG, "json": b'{"text": "a cat"}', "txt": b"a black cat"},
            "003": {"jpeg": JPEG, "json": b'{"text": "a cat"}'},
            "004": {"txt": b"no image"},
            "005": {"jpg": JPEG},
            "006": {"jpg": JPEG, "json": b"{"},
            "007": {"jpg": JPEG, "json": b'{"caption": null}'},
        },
    )
    size = path.stat().st_size
    for cut in (size, size // 2, 1024):
        found = [pair for begin in range(0, size, cut) for pair in read_tar(str(path), size, begin, min(begin + cut, size))]
        captions = [(item.key, item.caption) for _, item in found if isinstance(item, ImageText)]
        assert captions == [("000", "a café"), ("001", "two dogs"), ("002", "a black cat"), ("003", "a cat")]
        rejects = [(item.key, item.reason) for _, item in found if isinstance(item, Rejected)]
        assert rejects == [("004", "missing_image"), ("005", "missing_caption"), ("006", "bad_json"), ("007", "missing_caption")]
    cut = path.read_bytes().index(b"003.jpeg") + 512 + 10
    path.write_bytes(path.read_bytes()[:cut])
    reasons = [item.reason if isinstance(item, Rejected) else "" for _, item in read_tar(str(path), cut, 0, cut)]
    assert reasons == ["", "", "", "damaged_tar"]


def test_coco_captions_of_an_image_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    notes = [{"image_id": "1", "caption": text} for text in ("A dog.\n", " a  cat", "", "third")]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "sub/b.jpg"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": notes}))
    items = coco_captions(str(tmp_path / "c.json"), str(tmp_path), 3)
    assert [item.caption for item in items] == ["A dog. a cat.", ""]
    (first, good), (second, bad) = read_coco(items, 7)
    assert (first, good) == (7, ImageText(key="a", image=JPEG, caption="A dog. a cat."))
    assert isinstance(bad, Rejected) and (second, bad.key, bad.reason) == (8, "sub/b", "missing_image")
    (tmp_path / "c.json").write_text('{"images": [{"id": 1}]}')
    with pytest.raises(DataError, match="not a COCO captions file"):
        coco_captions(str(tmp_path / "c.json"), str(tmp_path), 1)


def test_real_coco_captions() -> None:
    real = os.environ.get("UNIOVSEG_REAL_DATA")
    if real is None:
        pytest.skip("UNIOVSEG_REAL_DATA is not set")
    annotations = f"{real}/coco_mini/annotations/captions_val2017.json"
    items = coco_captions(annotations, f"{real}/coco_mini/val2017", 5)
    parsed = json.loads(Path(annotations).read_text())
    assert len(items) == len(parsed["images"])
    assert all(item.caption.count(".") >= 5 for item in items)
    assert all(isinstance(record, ImageText) for _, record in read_coco(items[:8], 0))


def test_no_sources_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image-text pairs.*\.tar files"):
        list_sources(tmp_path, ".tar")
