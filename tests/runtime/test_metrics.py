"""What goes to Ray's metrics endpoint, caught where Ray's metrics take it in."""

from pathlib import Path

import pytest
from ray.util.metrics import Metric

from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.metrics import show_training
from uniovseg.runtime.recorder import RayRecorder
from uniovseg.runtime.shards import PartRange, write_part
from uniovseg.runtime.tracking import Run
from uniovseg.storage import Location

Caught = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    found: Caught = []
    monkeypatch.setattr(Metric, "_record", lambda self, value, tags=None: found.append((self.info["name"], value, tags)))
    return found


def test_a_runs_line_is_shown_under_its_name(caught: Caught, tmp_path: Path) -> None:
    line = {"loss": 2.5, "loss_mask": 1.0, "pairs": 7.0, "lr": 1e-3, "images_per_second": 20.5, "data_wait_share": 0.25}
    RayRecorder(Run(None, None), Location.of(tmp_path / "stage1"), 0).log(40, line)
    run = {"run": "stage1"}
    assert sorted(caught) == [
        ("uniovseg_data_wait_share", 0.25, run),
        ("uniovseg_images_per_second", 20.5, run),
        ("uniovseg_loss", 2.5, run),
        ("uniovseg_pairs_per_image", 7.0, run),
        ("uniovseg_step", 40.0, run),
    ]


def test_a_validations_line_shows_the_step_alone(caught: Caught) -> None:
    show_training("stage1", 200, {"val_box_iou": 0.5})
    assert caught == [("uniovseg_step", 200.0, {"run": "stage1"})]


def test_a_part_is_counted_when_it_is_committed(caught: Caught, scenes: list[ImageMasks], tmp_path: Path) -> None:
    part = PartRange(name="a", source="shapes", begin=0, end=5)
    bad = [Rejected(key=str(row), source="shapes", offset=row, reason=reason, detail="") for row, reason in ((3, "damaged_tar"), (4, "damaged_tar"))]
    write_part(part, [*enumerate(scenes[:3]), *((item.offset, item) for item in bad)], Location.of(tmp_path / "shards"), 2)
    assert caught == [
        ("uniovseg_samples", 3, {"output": "shards"}),
        ("uniovseg_rejects", 2, {"output": "shards", "reason": "damaged_tar"}),
    ]
