"""Image-entities records: rows, counts, refusals, and samples."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.data.sa1b_samples import make_record
from uniovseg.data import pairs
from uniovseg.data.entities import SCHEMA, collate, make_entity_sample, read_entities, to_record, to_table
from uniovseg.data.shards import ModelUse, ShardSet
from uniovseg.data.views import ViewConfig
from uniovseg.errors import DataError
from uniovseg.records import ImageEntities, ImagePairs, Rejected
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


def test_a_sample_is_the_view_that_pairs_get() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    entry = dataclasses.replace(RECORDS[0], image=cv2.imencode(".png", pixels)[1].tobytes())
    none = np.zeros(0, np.float32)
    matched = ImagePairs(
        key="t0", image=entry.image, height=40, width=60, counts=(), quality=none, entities=entry.entities, sizes=(64,),
        costs=np.zeros((1, 0, 2), np.float32), pairs=np.zeros((0, 2), np.int64), pair_costs=none,
    )  # fmt: skip
    config = ViewConfig(size=64, scale=(0.5, 2.0))
    made = [make_entity_sample(entry, config, seed) for seed in range(6)]
    for seed, sample in enumerate(made):
        expected = pairs.make_pair_sample(matched, config, seed)
        assert sample.record == entry
        np.testing.assert_array_equal(sample.image, expected.image)
    assert len({sample.view for sample in made}) == 6
    batch = collate(made)
    assert batch.keys == ("t0",) * 6 and batch.views == tuple(sample.view for sample in made)
    assert torch.equal(batch.to("cpu").images[5], torch.from_numpy(made[5].image))
    with pytest.raises(DataError, match="cannot be decoded"):
        make_entity_sample(RECORDS[1], config, 0)
