"""Online matching: the pairs and the gradient of stored pairs, blending, and runs that match for themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from uniovseg import checkpoint
from uniovseg.config import validate
from uniovseg.data import entities, pairs
from uniovseg.data.images import decode_image
from uniovseg.data.makers import EntitySampleMaker, PairSampleMaker
from uniovseg.data.regions import view_regions
from uniovseg.data.views import ViewConfig
from uniovseg.methods.catalog import build_method
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.methods.mask_text_alignment import MaskTextAlignment, MaskTextAlignmentConfig
from uniovseg.methods.promptable import RegionConfig
from uniovseg.models.feature_adapter import LowRank
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.models.text_classifier import template_set
from uniovseg.online_matching import OnlineMatcher, OnlineMatchingConfig, adapted_share
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pairing import PairingConfig, pair_image
from uniovseg.records import EntityBatch, ImageEntities, ImageMasks, ImagePairs, PairBatch
from uniovseg.runtime.shards import PartRange, write_manifest, write_records
from uniovseg.storage import Location
from uniovseg.training import main

PHRASES = ("red circle", "sand", "striped blue star", "green square")
REGIONS = RegionConfig(sizes=(64, 96), templates="simple")
PAIRING = PairingConfig(points_per_side=4, max_masks=12)
ONLINE = OnlineMatchingConfig(regions=REGIONS, pairing=PAIRING)
FIXED = ViewConfig(size=96, hflip=0.0, scale=(1.0, 1.0), colour_jitter=False)
RANDOM = ViewConfig(size=96, hflip=0.5, scale=(0.8, 2.0))


@pytest.fixture
def method_config(tiny_config: MaskGenerationConfig) -> MaskTextAlignmentConfig:
    """Stage 2 over the tiny stage 1; `regions` are other ones than the matching's."""
    shared = {name: getattr(tiny_config, name) for name in ("clip", "generator")}
    regions = RegionConfig(sizes=(128,), templates="simple")
    proposals = {"min_predicted_iou": 0.0, "nms_iou": 0.9, "nms_inner": 1.0}  # many masks to choose from
    return validate(MaskTextAlignmentConfig, shared | {"size": 64, "test_points_per_side": 6, "regions": regions, "proposals": proposals})


@pytest.fixture
def method(method_config: MaskTextAlignmentConfig) -> MaskTextAlignment:
    """In training mode, as the loop has it, with an adapter that changes something."""
    built = build_method(method_config, 0)
    assert isinstance(built, MaskTextAlignment) and built.adapter is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for branch in built.adapter.branches:
            assert isinstance(branch, LowRank)
            torch.nn.init.normal_(branch.up.weight, std=0.1)
    built.train()
    return built


@pytest.fixture
def records(scenes: list[ImageMasks]) -> list[ImageEntities]:
    """Five images of one to four entities, and one without any."""
    counts = (2, 4, 0, 3, 1, 4)
    return [
        ImageEntities(key=scene.key, image=scene.image, caption=f"caption {scene.key}", entities=PHRASES[:count])
        for scene, count in zip(scenes, counts, strict=False)
    ]


def paired(method: MaskTextAlignment, records: list[ImageEntities], share: float = 0.0) -> list[ImagePairs]:
    """What the job of matching stores: the matching's regions are the method's own setting, not a copy's."""
    config = method.config
    method.config = config.model_copy(update={"regions": REGIONS})
    phrases = PhraseEmbeddings(method.clip, template_set("simple"))
    try:
        return [pair_image(PAIRING, method.eval(), phrases, record, decode_image(record.image), share) for record in records]
    finally:
        method.config = config
        method.train()


def stored_batch(method: MaskTextAlignment, records: list[ImageEntities], view: ViewConfig) -> PairBatch:
    """By way of a table of pairs."""
    table = pairs.to_table(paired(method, records), ["x"] * len(records), range(len(records)))
    maker = PairSampleMaker(view, 7)
    return maker.collate([maker.make(table, row, 2) for row in range(len(records))])


def entity_batch(records: list[ImageEntities], view: ViewConfig) -> EntityBatch:
    """By way of a table of entities, and one of samples."""
    table = entities.to_table(records, ["x"] * len(records), range(len(records)))
    maker = EntitySampleMaker(view, 7)
    return maker.unpack(maker.pack([maker.make(table, row, 2) for row in range(len(records))]))


def told(batch: PairBatch) -> list[tuple[Any, tuple[str, ...]]]:
    """The regions and entities of each image, to compare."""
    return [(regions.tolist(), named) for regions, named in zip(batch.regions, batch.entities, strict=True)]


def gradient(method: MaskTextAlignment, batch: PairBatch) -> Tensor:
    assert method.adapter is not None
    parameters = list(method.adapter.parameters())
    return torch.cat([found.flatten() for found in torch.autograd.grad(method.training_step(batch).loss, parameters)])


@pytest.mark.parametrize("view", [FIXED, RANDOM], ids=["fixed", "random"])
def test_the_gradient_is_that_of_stored_pairs(method: MaskTextAlignment, records: list[ImageEntities], view: ViewConfig) -> None:
    stored, given = stored_batch(method, records, view), entity_batch(records, view)
    online = OnlineMatcher(ONLINE, method, steps=10)(given, step=9)
    assert online.keys == stored.keys == given.keys
    assert torch.equal(online.images, stored.images) and online.entities == stored.entities
    assert all(torch.equal(a, b) for a, b in zip(online.regions, stored.regions, strict=True))
    assert sum(len(found) for found in online.entities) > 6
    expected = gradient(method, stored)
    assert float(expected.norm()) > 1e-3
    assert torch.equal(gradient(method, online), expected)


def test_matching_depends_on_the_stored_image_alone(method: MaskTextAlignment, records: list[ImageEntities]) -> None:
    match = OnlineMatcher(ONLINE, method, steps=10)
    whole, turned = (match(entity_batch(records, view), 0) for view in (FIXED, FIXED.model_copy(update={"hflip": 1.0})))
    assert torch.equal(turned.images, whole.images.flip(-1)) and whole.entities == turned.entities
    assert all(torch.equal(a, b.flip(-1)) for a, b in zip(turned.regions, whole.regions, strict=True))


def test_pairs_that_are_out_of_view_are_left_out(method: MaskTextAlignment, records: list[ImageEntities]) -> None:
    zoomed = entity_batch(records, ViewConfig(size=32, hflip=0.0, scale=(4.0, 4.0)))
    found = OnlineMatcher(ONLINE, method, steps=10)(zoomed, 0)
    everything = paired(method, records)
    left_out = 0
    for regions, named, view, record in zip(found.regions, found.entities, zoomed.views, everything, strict=True):
        every = RunLengthMasks.from_counts([record.counts[mask] for mask, _ in record.pairs], (96, 96))
        inside = every.sample(view.cell_centres(32, 32)).any(1).tolist()
        assert named == tuple(record.entities[entity] for (_, entity), seen in zip(record.pairs, inside, strict=True) if seen)
        assert torch.equal(regions, view_regions(every.select(torch.tensor(inside).nonzero().flatten()), view))
        left_out += inside.count(False)
    assert left_out > 0


def test_the_share_rises_from_nothing_to_a_half() -> None:
    assert [adapted_share(step, 80) for step in (0, 20, 80)] == [0.0, 0.125, 0.5]


def test_a_blended_match_begins_frozen_and_follows_the_adapter(method: MaskTextAlignment, records: list[ImageEntities]) -> None:
    blended, frozen = (OnlineMatcher(ONLINE.model_copy(update={"blend": blend}), method, steps=10) for blend in (True, False))
    batch = entity_batch(records, FIXED)
    assert method.adapter is not None
    for branch in method.adapter.branches:
        assert isinstance(branch, LowRank)
        branch.up.weight.data *= 20  # enough to change who is matched with whom
    start, late = blended(batch, 0), blended(batch, 9)
    assert told(start) == told(frozen(batch, 9))
    for regions, named, record, view in zip(late.regions, late.entities, paired(method, records, 0.45), batch.views, strict=True):
        masks = RunLengthMasks.from_counts([record.counts[mask] for mask, _ in record.pairs], (96, 96))
        assert torch.equal(regions, view_regions(masks, view))
        assert named == tuple(record.entities[entity] for _, entity in record.pairs)
    assert told(late) != told(start)
    for parameter in method.adapter.parameters():
        parameter.data.zero_()
    silent = blended(batch, 9)  # the adapter of the method in training, as it is now
    assert told(silent) == told(start)


def write_set(folder: Path, table: Any, rows: list[Any]) -> Path:
    """A shard set of rows in groups of two."""
    part = PartRange(name="text-0", source="text.parquet", begin=0, end=len(rows))
    write_manifest(Location.of(folder), [write_records(part, list(enumerate(rows)), Location.of(folder), 2, table)])
    return folder


@pytest.fixture
def settings(method_config: MaskTextAlignmentConfig, records: list[ImageEntities], tmp_path: Path) -> dict[str, Any]:
    """A run of four steps that matches online and blends, two micro-batches a step."""
    data = {
        "train": str(write_set(tmp_path / "entities", entities.to_table, records)),
        "match": "online",
        "online": ONLINE.model_copy(update={"blend": True}).model_dump(mode="json"),
        "view": RANDOM.model_dump(mode="json"),
        "threads": 1,
    }
    return {
        "output": str(tmp_path / "run"), "seed": 3, "steps": 4, "batch_size": 4, "accumulate": 2, "device": "cpu", "log_every": 1,
        "checkpoint_every": 2, "method": method_config.model_dump(mode="json"), "data": data, "optim": {"lr": 0.01, "warmup_steps": 0},
    }  # fmt: skip


def run_from(settings: dict[str, Any], *overrides: str) -> int:
    file = Path(settings["output"]).parent / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return main(["--config", str(file), *overrides])


def lines_of(settings: dict[str, Any]) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(settings["output"]) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (step, steps) at which runs ask for the adapter's share."""
    found: list[tuple[int, int]] = []

    def watched(step: int, steps: int) -> float:
        found.append((step, steps))
        return adapted_share(step, steps)

    monkeypatch.setattr("uniovseg.online_matching.adapted_share", watched)
    return found


def test_a_run_from_its_configuration_and_its_resume(settings: dict[str, Any], asked: list[tuple[int, int]]) -> None:
    assert run_from(settings) == 0
    whole = lines_of(settings)
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    assert all(line["pairs"] > 0 and 0 < line["loss"] < 2 for line in whole)
    assert asked == [(step, 4) for step in range(4) for _ in range(2)]
    weights = checkpoint.read_weights(Path(settings["output"]) / "step_0000004")

    (Path(settings["output"]) / "step_0000004" / checkpoint.MANIFEST).unlink()  # as if it was killed while writing
    assert run_from(settings) == 0
    assert asked[8:] == [(step, 4) for step in (2, 2, 3, 3)]
    for again, line in zip(lines_of(settings), whole, strict=True):
        assert {name: again[name] for name in ("step", "loss", "cosine", "pairs")} == {
            name: line[name] for name in ("step", "loss", "cosine", "pairs")
        }
    for name, value in checkpoint.read_weights(Path(settings["output"]) / "step_0000004").items():
        assert torch.equal(value, weights[name]), name


def test_what_does_not_fit_is_said_in_a_line(
    settings: dict[str, Any], tiny_config: MaskGenerationConfig, shapes_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_from(settings, "data.match=pairs") == 1
    assert run_from(settings, f"data.train={shapes_shards}") == 1
    assert run_from(settings | {"method": tiny_config.model_dump(mode="json")}) == 2
    assert run_from(settings, "data.match=offline") == 2
    messages = capsys.readouterr().err.splitlines()
    wanted = ("allowed: pairs of jobs/match.py", "allowed: image-entities shards of jobs/refine.py", "does not train on pairs", "data.match: ")
    assert len(messages) == len(wanted)
    for message, part in zip(messages, wanted, strict=True):
        assert message.startswith("error: ") and part in message
