from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.data.sa1b_samples import make_record
from uniovseg.data.entities import SCHEMA, read_entities, to_record, to_table
from uniovseg.data.shards import ModelUse, ShardSet
from uniovseg.errors import DataError
from uniovseg.records import ImageEntities, Rejected
from uniovseg.runtime.shards import PartRange, write_manifest, write_part, write_records
from uniovseg.storage import Location


def record(number: int, entities: Sequence[str]) -> ImageEntities:
    return ImageEntities(key=f"t{number}", image=bytes([number]), caption=f"caption {number}", entities=tuple(entities))


RECORDS = [record(0, ["red star", "sand"]), record(1, []), record(2, ["café au lait"])]


def test_rows_are_records_again() -> None:
    table = to_table(RECORDS, ["a", "a", "b"], [5, 6, 7])
    assert table.schema == SCHEMA
    assert [to_record(table, row) for row in range(3)] == RECORDS
    assert (table.column("source").to_pylist(), table.column("offset").to_pylist()) == (["a", "a", "b"], [5, 6, 7])


def test_a_set_counts_entities_and_what_was_asked(tmp_path: Path) -> None:
    output = Location.of(tmp_path)
    use = ModelUse(model="m", prompt="entities", prompt_hash="h", replies=3, bad_replies=1, prompt_tokens=30, completion_tokens=9, cost=0.25)
    rejected = Rejected(key="t9", source="a.parquet", offset=9, reason="bad_reply", detail="why")
    first: list[tuple[int, ImageEntities | Rejected]] = [*enumerate(RECORDS), (9, rejected)]
    second: list[tuple[int, ImageEntities | Rejected]] = [(10, record(3, ["dog"]))]
    commits = [
        write_records(PartRange(name=name, source="a.parquet", begin=0, end=9), samples, output, 2, to_table, lambda: {"parser": use})
        for name, samples in (("a", first), ("b", second))
    ]
    manifest = write_manifest(output, commits, {"parser": "llm"})
    assert (manifest.samples, manifest.entities, manifest.masks, manifest.rejects) == (4, 4, 0, {"bad_reply": 1})
    twice = {"replies": 6, "bad_replies": 2, "prompt_tokens": 60, "completion_tokens": 18, "cost": 0.5}
    assert manifest.models == {"parser": use.model_copy(update=twice)}
    assert manifest.settings == {"parser": "llm"}
    assert list(read_entities(tmp_path)) == [*RECORDS, record(3, ["dog"])]
    assert list(read_entities(tmp_path, 2)) == RECORDS[:2]
    assert ShardSet(tmp_path).manifest == manifest


def test_sets_of_other_records_are_refused(tmp_path: Path) -> None:
    masks, entities = Location.of(tmp_path / "masks"), Location.of(tmp_path / "entities")
    part = PartRange(name="a", source="x", begin=0, end=1)
    write_manifest(masks, [write_part(part, [(0, make_record(0))], masks, 2)])
    write_manifest(entities, [write_records(part, [(0, RECORDS[0])], entities, 2, to_table)])
    with pytest.raises(DataError, match="holds other records.*caption"):
        list(read_entities(masks))
    with pytest.raises(DataError, match="holds other records.*height"):
        list(ShardSet(entities).records())
