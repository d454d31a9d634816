"""Matching as a job: what is written, going on after a stop, and refusals."""

from pathlib import Path

import pytest

from uniovseg.config import load
from uniovseg.data import entities, pairs
from uniovseg.data.inspect import pictures_of_pairs
from uniovseg.data.shapes import SceneConfig, image_text
from uniovseg.data.shards import ShardSet
from uniovseg.errors import ConfigError, DataError
from uniovseg.records import ImageEntities
from uniovseg.runtime.match import MatchConfig, match
from uniovseg.runtime.shards import PartRange, write_manifest, write_records
from uniovseg.storage import Location

COUNT = 5


@pytest.fixture(scope="module")
def entity_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of two or three entities each, and one that is no image, in row groups of two."""
    folder = tmp_path_factory.mktemp("entities")
    records = []
    for index in range(COUNT):
        drawn = image_text(SceneConfig(size=96), 5, index, 0.0)
        image = b"no image" if index == 3 else drawn.image
        records.append(ImageEntities(key=drawn.key, image=image, caption=drawn.caption, entities=("red star", "sand", "blue ring")[: 2 + index % 2]))
    part = PartRange(name="text-0", source="text.parquet", begin=0, end=COUNT)
    commit = write_records(part, enumerate(records), Location.of(folder), 2, entities.to_table)
    write_manifest(Location.of(folder), [commit])
    return folder


def config_of(entity_set: Path, output: Path, *changes: str) -> MatchConfig:
    settings = [
        f"entities={entity_set}", f"output={output}", "regions={sizes: [64, 96], templates: simple}", "pairing.points_per_side=4",
        "pairing.max_masks=5", "device=cpu", *changes,
    ]  # fmt: skip
    return load(MatchConfig, None, settings)


def test_every_image_has_its_costs_and_pairs(entity_set: Path, tmp_path: Path) -> None:
    report = match(config_of(entity_set, tmp_path))
    found = list(ShardSet(tmp_path).read(pairs.to_record))
    assert [record.key for record in found] == ["text_1", "text_2", "text_3", "text_5"]
    assert (report["images"], report["rejected"], report["parts"]) == (4, 1, 3)
    assert ShardSet(tmp_path).rejects().column("key").to_pylist() == ["text_4"]
    for record in found:
        assert record.sizes == (64, 96)
        assert record.costs.shape == (2, len(record.counts), len(record.entities)) and len(record.counts) <= 5
        assert len(record.pairs) == min(len(record.counts), len(record.entities))
        for (mask, entity), cost in zip(record.pairs, record.pair_costs, strict=True):
            assert cost == pytest.approx(record.costs[:, mask, entity].mean(), abs=1e-6)
    assert report["pairs"] == sum(len(record.pairs) for record in found) > 0
    pictures = pictures_of_pairs(str(tmp_path), 3)
    assert len(pictures) == 3 and all(min(picture.shape[:2]) >= 96 for picture in pictures)


def test_threads_and_a_filter_of_its_own(entity_set: Path, tmp_path: Path) -> None:
    everything = "pairing.proposals={min_predicted_iou: 0, nms_iou: 1, nms_inner: 1}"
    match(config_of(entity_set, tmp_path / "one", everything))
    match(config_of(entity_set, tmp_path / "two", everything, "pool.at_once=2"))
    match(config_of(entity_set, tmp_path / "few", everything.replace("}", ", max_proposals: 2}")))
    one, two, few = (list(ShardSet(tmp_path / name).read(pairs.to_record)) for name in ("one", "two", "few"))
    assert [record.counts for record in two] == [record.counts for record in one]
    assert [len(record.counts) for record in one] == [5] * 4
    assert [record.counts for record in few] == [record.counts[:2] for record in one]


def test_a_run_goes_on_where_it_was_stopped(entity_set: Path, tmp_path: Path) -> None:
    whole = match(config_of(entity_set, tmp_path))
    before = list(ShardSet(tmp_path).read(pairs.to_record))
    (tmp_path / "manifest.json").unlink()
    (lost,) = [path for path in (tmp_path / "commits").iterdir() if path.name.endswith("00001.json")]
    lost.unlink()
    again = match(config_of(entity_set, tmp_path))
    assert again["parts_already_done"] == 2
    assert {key: again[key] for key in ("images", "pairs", "rejected")} == {key: whole[key] for key in ("images", "pairs", "rejected")}
    assert [record.counts for record in ShardSet(tmp_path).read(pairs.to_record)] == [record.counts for record in before]


def test_an_output_of_other_settings_is_refused(entity_set: Path, tmp_path: Path) -> None:
    match(config_of(entity_set, tmp_path))
    with pytest.raises(ConfigError, match="begun with other settings; seen: pairing: .*raw"):
        match(config_of(entity_set, tmp_path, "pairing.matching.cost=raw"))


def test_an_output_of_other_entities_is_refused(entity_set: Path, tmp_path: Path) -> None:
    output = Location.of(tmp_path)
    write_records(PartRange(name="other", source="elsewhere", begin=0, end=1), iter(()), output, 2, pairs.to_table)
    with pytest.raises(ConfigError, match="parts of other entities; seen: other"):
        match(config_of(entity_set, tmp_path))


def test_a_set_of_another_kind_is_told(entity_set: Path, tmp_path: Path) -> None:
    match(config_of(entity_set, tmp_path / "pairs"))
    with pytest.raises(DataError, match=r"holds other records; seen: .*pairs: .*caption"):
        match(config_of(tmp_path / "pairs", tmp_path / "again"))
