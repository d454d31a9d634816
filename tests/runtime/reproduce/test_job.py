"""The job on the shapes world: what the rows say, from made-up results; and a whole tiny table 3."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jobs import _cli, reproduce
from uniovseg.config import load
from uniovseg.data.entities import read_entities
from uniovseg.data.shapes import TEXT_STREAM, SceneConfig, draw_scene, entities, image_text, scene_rng
from uniovseg.errors import DataError
from uniovseg.runtime.alignment import NamingFigures, Namings
from uniovseg.runtime.reproduce import cost, job
from uniovseg.runtime.reproduce.job import ReproduceConfig
from uniovseg.runtime.reproduce.shapes_world import SeedResult, ShapesWorldConfig, Step, ablation_steps, noise_steps

SEEDS = (3, 4, 5)


def figures(miou: float) -> NamingFigures:
    return NamingFigures(miou=miou, unseen_miou=miou / 2, pq=miou / 4, oracle_mask_miou=None)


def made_up(steps: list[Step], mious: dict[str, list[float]]) -> list[SeedResult]:
    """Results of three seeds: the baseline's mIoU is 0.1, 0.2, 0.3; half the images of every step have wrong entities."""
    return [
        SeedResult(
            Namings(figures(0.1 * (place + 1)), "384 px, simple", {step.name: figures(mious[step.name][place]) for step in steps}),
            {step.name: 0.5 for step in steps},
        )
        for place in range(len(SEEDS))
    ]


def run(tmp_path: Path, *argv: str) -> dict[str, Any]:
    assert _cli.run(ReproduceConfig, reproduce.main, [*argv, f"output={tmp_path}"], reproduce.arguments) == 0
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return report


def test_the_five_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mious = {"nltk": [0.1, 0.2, 0.4], "refine_nltk": [0.2, 0.2, 0.4], "refine_llm": [0.3, 0.3, 0.4], "multi_scale": [0.45, 0.5, 0.55]}

    def pretend(_: ShapesWorldConfig, steps: list[Step], seeds: tuple[int, ...], folder: str) -> list[SeedResult]:
        assert seeds == SEEDS and folder.startswith(str(tmp_path))
        return made_up(steps, mious)

    monkeypatch.setattr(job, "run_steps", pretend)
    monkeypatch.setattr(job, "missing_tools", lambda steps: {})
    table = run(tmp_path, "--table", "3", "--world", "shapes", "--seeds", "3,4,5", "shapes.noise.nltk=0.3")["table"]
    baseline, nltk, *_, full = table["rows"]
    assert [row["row"] for row in table["rows"]] == ["baseline", *mious]
    for row, values in zip(table["rows"][1:], mious.values(), strict=True):
        assert (row["miou"], row["miou_std"]) == (pytest.approx(statistics.mean(values)), pytest.approx(statistics.stdev(values)))
        gains = [value - 0.1 * (place + 1) for place, value in enumerate(values)]
        assert (row["gain"], row["gain_std"]) == (pytest.approx(statistics.mean(gains)), pytest.approx(statistics.stdev(gains)))
        assert row["by_seed"] == values and row["wrong_images"] == 0.5 and row["oracle_mask_miou"] is None
    assert (baseline["miou"], baseline["miou_std"], baseline["gain"]) == (pytest.approx(0.2), pytest.approx(0.1), 0)
    assert (nltk["caption_noise"], nltk["parser"], nltk["parser_noise"], nltk["sizes"]) == (0.5, "nltk", 0.3, "384")
    assert (full["caption_noise"], full["parser"], full["parser_noise"], full["sizes"]) == (0.1, "llm", 0.05, "256+384")
    assert (full["paper_coco_miou"], full["paper_gain"]) == (pytest.approx(0.427), pytest.approx(0.095))
    assert full["gain_minus_paper"] == pytest.approx(0.3 - 0.095)
    assert table["full_row_is_better_by_more_than_one_std"] is True
    written = list(csv.DictReader(io.StringIO((tmp_path / "table_3_shapes.csv").read_text())))
    assert [float(row["miou"]) for row in written] == pytest.approx([row["miou"] for row in table["rows"]])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "multi_scale" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "multi_scale", "10.0", "llm 5.0", "50.0", "256+384", "50.0 ± 5.0", "25.0 ± 2.5", "12.5 ± 1.3", "+30.0 ± 5.0", "42.7", "+9.5",
    ]  # fmt: skip


def test_a_gain_within_the_spread_is_not_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mious = {name: [0.15, 0.25, 0.35] for name in ("nltk", "refine_nltk", "refine_llm", "multi_scale")}  # a gain of 0.05, a spread of 0.1
    monkeypatch.setattr(job, "run_steps", lambda config, steps, seeds, folder: made_up(steps, mious))
    monkeypatch.setattr(job, "missing_tools", lambda steps: {})
    assert run(tmp_path, "table=3", "world=shapes")["table"]["full_row_is_better_by_more_than_one_std"] is False


def test_the_curve_of_caption_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(ReproduceConfig, reproduce.DEFAULT)
    shares = [share for share, _, _ in noise_steps(config.shapes)]
    assert shares == [0.0, 0.15, 0.3, 0.5]
    for share, raw, refined in noise_steps(config.shapes):
        assert (raw.raw, raw.captioner, refined.raw) == (share, "", share)
        assert float(refined.captioner.removeprefix("captioner@")) == pytest.approx(share * 0.1 / 0.5)
    values = {f"raw_{share:g}": [0.5 - share / 2] * 3 for share in shares} | {f"refined_{share:g}": [0.5, 0.4, 0.45] for share in shares}
    monkeypatch.setattr(job, "run_steps", lambda config, steps, seeds, folder: made_up(steps, values))
    noise = run(tmp_path, "--noise")["noise"]
    assert noise["baseline_miou"] == pytest.approx(0.2)
    for share, row in zip(shares, noise["rows"], strict=True):
        assert (row["wrong_captions"], row["raw_miou"], row["raw_miou_std"]) == (share, pytest.approx(0.5 - share / 2), pytest.approx(0))
        assert (row["refined_miou"], row["refined_miou_std"]) == (pytest.approx(0.45), pytest.approx(0.05))
    picture = cv2.imread(str(tmp_path / "noise.png"))
    assert picture is not None and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    assert len((tmp_path / "noise.csv").read_text().splitlines()) == 5


def test_the_steps_of_table_3() -> None:
    nltk, refine_nltk, refine_llm, multi_scale = ablation_steps(ShapesWorldConfig(sizes=(64, 96)))
    assert (nltk.captioner, nltk.parser, nltk.sizes) == ("", "nltk@0", (96,))
    assert (refine_nltk.captioner, refine_nltk.parser, refine_nltk.sizes) == ("captioner@0.1", "nltk@0", (96,))
    assert (refine_llm.captioner, refine_llm.parser, refine_llm.sizes) == ("captioner@0.1", "llm@0.05", (96,))
    assert (multi_scale.captioner, multi_scale.parser, multi_scale.sizes) == ("captioner@0.1", "llm@0.05", (64, 96))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_tiny_table_3_without_nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_data(_: str) -> tuple[str, ...]:
        raise DataError("NLTK's tagger data is not there")

    monkeypatch.setattr("uniovseg.text.nltk_parser.parse_entities", no_data)
    scene = SceneConfig(size=96)
    settings = [
        "shapes.scene.size=96", "shapes.image_text=6", "shapes.evaluation=2", "shapes.align_steps=2", "shapes.sizes=[64,96]", "shapes.pool.workers=0",
        "shapes.templates=[simple]", "shapes.points_per_side=4", "shapes.noise.llm=0.5",
    ]  # fmt: skip
    table = run(tmp_path, "--table", "3", "--world", "shapes", "--seeds", "7", *settings)["table"]
    rows = {row["row"]: row for row in table["rows"]}
    for name in ("nltk", "refine_nltk"):
        assert rows[name]["missing"] == "NLTK's tagger data is not there" and rows[name]["miou"] is None
    for name in ("baseline", "refine_llm", "multi_scale"):
        assert rows[name]["missing"] == "" and 0 <= rows[name]["miou"] <= 1 and rows[name]["miou_std"] is None
    assert table["full_row_is_better_by_more_than_one_std"] is None
    world = tmp_path / "table_3_shapes/seed7"
    (found,) = world.glob("entities_*")  # both steps have the same entities
    records = list(read_entities(found))
    truth = [set(entities(draw_scene(scene, scene_rng(7, TEXT_STREAM, index), held_out=False))) for index in range(6)]
    assert [record.image for record in records] == [image_text(scene, 7, index, 0.0).image for index in range(6)]
    wrong = sum(set(record.entities) != names for record, names in zip(records, truth, strict=True))
    assert rows["refine_llm"]["wrong_images"] == rows["multi_scale"]["wrong_images"] == pytest.approx(wrong / 6)
    sizes = {name: json.loads((world / name / "pairs/settings.json").read_text())["regions"] for name in ("refine_llm", "multi_scale")}
    assert ["[96]" in sizes["refine_llm"], "[64,96]" in sizes["multi_scale"]] == [True, True]


COST = ["costs.sizes=[64,96]", "costs.images=1", "costs.scene.size=96", "costs.points_per_side=3", "costs.device=cpu"]


def test_cost_by_scales_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "TASKS", ("matching",))
    rows = run(tmp_path, "--cost", *COST)["cost"]["rows"]
    assert [(row["task"], row["scales"], row["sizes"]) for row in rows] == [("matching", 1, "64"), ("matching", 2, "64+96")]
    assert all(row["seconds"] > 0 and row["memory_mib"] >= row["model_mib"] > 50 for row in rows)
    assert len((tmp_path / "cost.csv").read_text().splitlines()) == 3


def test_cost_of_inference() -> None:
    config = load(ReproduceConfig, None, COST).costs
    rows = cost.measure_task(config, "inference")
    assert [(row["task"], row["scales"], row["sizes"]) for row in rows] == [("inference", 1, "64"), ("inference", 2, "64+96")]
