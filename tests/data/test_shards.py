import copy
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.sa1b_samples import make_record
from uniovseg.data import shards
from uniovseg.data.shards import MANIFEST, SCHEMA, Contents, Manifest, ShardSet, contents_of, rejects_table, to_record, to_table
from uniovseg.errors import DataError
from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.shards import PartRange, write_manifest, write_part
from uniovseg.storage import Location

RECORDS = [make_record(number) for number in range(7)]


@pytest.fixture
def shard_set(tmp_path: Path) -> Location:
    """Two shards of row groups of 2: 2 + 1 and 2 + 2 rows, and one rejected sample."""
    output = Location.of(tmp_path / "set")
    rejected = Rejected(key="bad", source="b.tar", offset=9, reason="bad_json", detail="why")
    commits = [
        write_part(PartRange(name="a", source="a.tar", begin=0, end=99), list(enumerate(RECORDS[:3])), output, 2),
        write_part(PartRange(name="b", source="b.tar", begin=0, end=99), [(9, rejected), *enumerate(RECORDS[3:])], output, 2),
    ]
    write_manifest(output, commits)
    return output


def test_rows_are_records_again() -> None:
    nothing = ImageMasks(key="none", image=b"", height=3, width=4, counts=(), predicted_iou=(), stability_score=())
    table = to_table([*RECORDS, nothing], ["x"] * 8, range(8))
    assert table.schema == SCHEMA
    for row, record in enumerate([*RECORDS, nothing]):
        found = to_record(table, row)
        assert (found.key, found.image, found.counts) == (record.key, record.image, record.counts)
        assert (found.height, found.width) == (record.height, record.width)
        assert found.predicted_iou == pytest.approx(record.predicted_iou, abs=1e-7)  # stored as float32
        assert found.stability_score == pytest.approx(record.stability_score, abs=1e-7)
    assert contents_of(table) == Contents(masks=21)
    assert contents_of(table.slice(0, 0)) == Contents()
    assert contents_of(table.slice(1, 2)).masks == 6


def test_scores_that_the_source_lacks_stay_unknown() -> None:
    nan = float("nan")
    record = ImageMasks(key="a", image=b"", height=1, width=1, counts=(b"1",), predicted_iou=(nan,), stability_score=(nan,))
    found = to_record(to_table([record], ["x"], [0]), 0)
    assert math.isnan(found.predicted_iou[0]) and math.isnan(found.stability_score[0])


def test_a_shard_set_is_what_its_manifest_says(shard_set: Location) -> None:
    shards = ShardSet(shard_set)
    assert [group.rows for group in shards.groups] == [2, 1, 2, 2]
    assert [tuple(group)[:2] for group in shards.groups] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (shards.manifest.samples, shards.manifest.masks, shards.manifest.rejects) == (7, 21, {"bad_json": 1})
    assert shards.manifest.sources == ("a.tar", "b.tar")
    assert [record.key for record in shards.records()] == [record.key for record in RECORDS]
    assert [record.key for record in shards.records(limit=4)] == [record.key for record in RECORDS[:4]]
    assert shards.read_group(2).column("key").to_pylist() == ["sa_3", "sa_4"]
    assert shards.read_group(3).column("offset").to_pylist() == [2, 3]
    assert shards.read_group(1).column("source").to_pylist() == ["a.tar"]
    assert shards.rejects().to_pylist() == [{"key": "bad", "source": "b.tar", "offset": 9, "reason": "bad_json", "detail": "why"}]
    for info in shards.manifest.shards:
        path = Path((shard_set / info.name).uri)
        parquet = pq.ParquetFile(path)
        assert info.bytes == path.stat().st_size
        assert tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)) == info.rows
        by_name = {
            parquet.metadata.row_group(0).column(i).path_in_schema: parquet.metadata.row_group(0).column(i)
            for i in range(parquet.metadata.num_columns)
        }
        assert by_name["image"].compression == "UNCOMPRESSED" and by_name["counts.list.element"].compression == "ZSTD"


@pytest.mark.parametrize("most", [1, 64])
def test_groups_in_any_order_through_remembered_footers(shard_set: Location, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_FOOTERS", most)
    kept = ShardSet(shard_set)
    for index in (0, 1, 3, 2, 0, 3):
        assert kept.read_group(index).equals(ShardSet(shard_set).read_group(index))
    assert copy.deepcopy(kept).read_group(3).equals(kept.read_group(3))


def test_the_layout_changes_with_the_row_groups(shard_set: Location) -> None:
    whole = ShardSet(shard_set).manifest
    found = {ShardSet(shard_set).layout}
    assert found == {ShardSet(shard_set).layout}
    others = [whole.shards[:1], whole.shards[::-1], (whole.shards[0].model_copy(update={"rows": (3,)}), whole.shards[1])]
    for others_shards in others:
        (Path(shard_set.uri) / MANIFEST).write_text(whole.model_copy(update={"shards": others_shards}).model_dump_json())
        found.add(ShardSet(shard_set).layout)
    assert len(found) == 4


def test_a_damaged_shard_is_an_error_that_names_it(shard_set: Location) -> None:
    shards = ShardSet(shard_set)
    file = Path(shard_set.uri) / shards.manifest.shards[1].name
    file.write_bytes(file.read_bytes()[:-20])
    assert len(shards.read_group(1)) == 1
    with pytest.raises(DataError, match=f"damaged; seen: {file}"):
        shards.read_group(2)


def test_files_that_the_manifest_does_not_name_do_not_count(shard_set: Location) -> None:
    write_part(PartRange(name="c", source="c.tar", begin=0, end=1), [(0, RECORDS[0])], shard_set, 2)
    assert ShardSet(shard_set).manifest.samples == len(list(ShardSet(shard_set).records())) == 7


def test_a_folder_without_a_manifest_is_refused(shard_set: Location) -> None:
    (Path(shard_set.uri) / MANIFEST).unlink()
    with pytest.raises(DataError, match="no manifest"):
        ShardSet(shard_set)


def test_another_layout_is_refused(shard_set: Location) -> None:
    path = Path(shard_set.uri) / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="manifest cannot be understood: format"):
        ShardSet(shard_set)
    path.write_text("{}")
    with pytest.raises(DataError, match="manifest cannot be understood: shards"):
        ShardSet(shard_set)


def test_an_empty_set_is_a_set(tmp_path: Path) -> None:
    output = Location.of(tmp_path)
    write_manifest(output, [write_part(PartRange(name="a", source="a.tar", begin=0, end=1), [], output, 2)])
    shards = ShardSet(output)
    assert (shards.groups, list(shards.records()), len(shards.rejects()), shards.manifest.samples) == ((), [], 0, 0)
    assert shards.rejects().schema == rejects_table([]).schema


def test_the_manifest_round_trips() -> None:
    manifest = Manifest(shards=(), samples=0, masks=0, sources=("a",), rejects={"x": 1})
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
