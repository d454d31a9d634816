import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import benchmark
from uniovseg.benchmarks import data
from uniovseg.benchmarks.data import DataBenchmarkConfig, Lines, _resize_and_crop, synthetic_record, write_shards
from uniovseg.data.images import decode_image
from uniovseg.data.views import ViewConfig, draw_view
from uniovseg.ops.run_length import RunLengthMasks

SMALL = DataBenchmarkConfig(samples=2, masks=40, height=96, width=140, points=50, repeats=1, ray_epochs=1)


def test_samples_are_like_sa_1b() -> None:
    record = synthetic_record(DataBenchmarkConfig(), 0)
    masks = RunLengthMasks.from_counts(record.counts, (1500, 2250))
    assert decode_image(record.image).shape == (1500, 2250, 3) and 4e5 < len(record.image) < 1e6
    assert len(masks) == 100 and 700 < len(masks.ends) / 100 < 1500
    assert synthetic_record(SMALL, 0) == synthetic_record(SMALL, 0) != synthetic_record(SMALL, 1)


def test_the_usual_way_looks_up_the_same_pixels_as_ours() -> None:
    """OpenCV's nearest neighbour is the pixel under a view pixel's corner, ours the one under its centre: borders may differ by a source pixel."""
    record = synthetic_record(SMALL, 0)
    masks = RunLengthMasks.from_counts(record.counts, (record.height, record.width))
    masks = masks.select(masks.area().argmax()[None])
    for seed in range(6):
        view = draw_view(ViewConfig(size=64, scale=(0.8, 1.2)), record.height, record.width, np.random.default_rng(seed))
        resized = _resize_and_crop(masks.to_dense()[0].numpy().astype(np.uint8), view).astype(bool)
        ours = masks.sample(view.cell_centres(64, 64))[0].reshape(64, 64).numpy()
        assert (resized & ours).sum() > 0.9 * (resized | ours).sum()


def test_ours_gives_the_samples_of_the_shard_set(tmp_path: Path) -> None:
    records = [synthetic_record(SMALL, index) for index in range(2)]
    samples = list(Lines(write_shards(tmp_path, records), records, SMALL).ours())
    assert [sample.key for sample in samples] == ["benchmark_0", "benchmark_1"]
    assert all(sample.image.shape == (3, 1024, 1024) and len(sample.masks) > 20 for sample in samples)


def test_the_job_reports_times_ratios_and_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(data, "measure_ray", lambda shards, config: 0.25)  # it starts a cluster; tests/runtime/test_data_benchmark.py has one
    overrides = [f"{name}={getattr(SMALL, name)}" for name in ("samples", "masks", "height", "width", "points", "repeats", "ray_epochs")]
    assert benchmark.main(["data", f"output={tmp_path}", *overrides]) == 0
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "report.json").read_text())
    seconds = report["seconds_a_sample"]
    assert set(seconds) == {"a", "a2", "b", "c", "a with colour jitter", "a by Ray Data"} and min(seconds.values()) > 0
    for name, ratio in report["ratios"].items():
        above, below = name.split(" / ")
        assert ratio["value"] == pytest.approx(seconds[above] / seconds[below])
        bound = float(ratio["target"].split()[-1])
        assert ratio["met"] == (ratio["value"] <= bound if ratio["target"].startswith("at most") else ratio["value"] >= bound)
    assert "a / c" in capsys.readouterr().out


def test_an_unknown_subject_is_a_wrong_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["date"]) == 2
    assert "seen: date; allowed: data" in capsys.readouterr().err
