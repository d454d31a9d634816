"""Plans against figures computed by hand, on costs of round numbers."""

from pathlib import Path

import pytest

from jobs import plan as job
from uniovseg.config import load
from uniovseg.errors import ConfigError
from uniovseg.runtime.costs import KINDS, Costs, Figure, read_figures
from uniovseg.runtime.model_size import ModelSize
from uniovseg.runtime.plan import DataFacts, Estimate, data_facts, gpu_seconds, plan_text, plan_training
from uniovseg.runtime.refine import RefineConfig
from uniovseg.runtime.train import TrainJobConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
ROUND = {
    "sample_cpu": 0.02, "ray_efficiency": 0.8, "cores_a_cpu": 0.5, "image_bytes": 1e6, "rows_per_group": 50, "mask_bytes": 0, "worker_bytes": 5e9,
    "task_bytes": 1e9, "stage1_seconds": 0.5, "trunk_flops": 1e11, "trunk_utilisation": 0.5, "peak_flops": 1e14, "node_gpus": 4, "node_cpus": 32,
    "node_memory": 4e11, "node_network": 1e9, "gpu_price": 2.0, "captions": 1e6, "caption_image_bytes": 1e5, "caption_prompt_tokens": 2000,
    "caption_reply_tokens": 100, "entities_prompt_tokens": 400, "entities_reply_tokens": 100, "prompt_utilisation": 0.5, "reply_utilisation": 0.1,
    "reply_token_seconds": 0.02,
}  # fmt: skip
DATA = DataFacts(image_bytes=1e6, rows_per_group=50, source="a test")
SIZE = ModelSize(trainable=25_000_000, weights_bytes=100_000_000)


def costs(**changes: float) -> Costs:
    return Costs([Figure(name, "g", value, "", "assumed", "a test") for name, value in (ROUND | changes).items()], "g")


@pytest.fixture(scope="module")
def config() -> TrainJobConfig:
    changes = [
        "steps=1000",
        "batch_size=56",
        "data.view.size=896",
        "cpus_per_worker=2",
        "checkpoint_every=300",
        "keep_metric=null",
        "data.window_groups=64",
    ]
    return load(TrainJobConfig, CONFIGS / "stage1_sa1b.yaml", changes)


def plan(config: TrainJobConfig, gpus: int, **changes: float) -> Estimate:
    return plan_training(config, gpus, costs(**changes), DATA, SIZE)


def test_a_training_by_hand(config: TrainJobConfig) -> None:
    found = plan(config, 8)
    assert (found.nodes, found.batch, found.steps, found.total) == (2, 56, 1000, 56_000)
    assert found.limits == pytest.approx({
        "GPUs": 16,  # 8 / 0.5 s
        "CPUs of the feed": 960,  # 64 - 16 CPUs at 0.5 cores and 0.8, a sample every 0.02 s
        "network to S3": 2000,  # two nodes of 1 GB/s
        "exchange of gradients": 560,  # 2 x 1/2 x 100 MB at 1 GB/s: 0.1 s for 56 images
    })  # fmt: skip
    assert (found.bottleneck, found.rate) == ("GPUs", 16)
    assert found.s3_bytes == 8e6
    assert found.hours == pytest.approx(3500 / 3600)
    assert found.dollars == pytest.approx(3500 / 3600 * 16)
    assert found.checkpoint_bytes == 300e6  # weights and two moments
    assert found.checkpoint_total == 4 * 300e6 + 100e6  # after 300, 600, 900 and 1000 steps, and the model


def test_memory_by_hand(config: TrainJobConfig) -> None:
    found = plan(config, 8)
    sample = 3 * 896**2
    blocks = 7  # of 6 CPUs, and one waiting
    store = 4 * (blocks * 28 * (1e6 + sample) + 2 * 7 * sample)  # blocks of 4 x 7 rows, four workers a node
    assert found.object_store == store
    held = 2 * (64 / 8 + 1) * 50 * 1e6
    assert found.host_memory == store + 4 * (5e9 + held + 6 * 1e9)
    assert found.node_memory == 4e11
    threads = config.model_copy(update={"data": config.data.model_copy(update={"feed": "threads", "threads": 4})})
    assert plan(threads, 8).object_store == 0
    assert plan(threads, 8).host_memory == 4 * (5e9 + held)
    assert plan(threads, 8).limits["CPUs of the feed"] == 8 * 2 * 0.5 / 0.02  # no more threads than the worker's CPUs


def test_each_part_can_be_the_bottleneck(config: TrainJobConfig) -> None:
    assert plan(config, 8, sample_cpu=2).bottleneck == "CPUs of the feed"
    assert plan(config, 8, node_network=7e6, stage1_seconds=1e-3).bottleneck == "exchange of gradients"
    assert plan(config, 4, node_network=7e6).bottleneck == "network to S3"


def test_one_gpu_has_its_share_of_a_machine_and_exchanges_nothing(config: TrainJobConfig) -> None:
    found = plan(config, 1)
    assert (found.nodes, found.node_memory) == (1, 1e11)
    assert found.limits == pytest.approx({"GPUs": 2, "CPUs of the feed": 120, "network to S3": 250})


def test_a_batch_that_does_not_divide_grows_and_the_images_stay(config: TrainJobConfig) -> None:
    more = plan(config, 256)
    assert (more.batch, more.steps, more.total) == (256, 219, 219 * 256)  # 56,000 images or few more
    assert (plan(config, 24).batch, plan(config, 24).steps) == (72, 778)


def test_training_goes_by_pixels_and_on_another_gpu_by_bandwidth(config: TrainJobConfig) -> None:
    larger = config.model_copy(update={"data": config.data.model_copy(update={"view": config.data.view.model_copy(update={"size": 1792})})})
    assert gpu_seconds(larger, costs()) == 2.0
    figures = [Figure("stage1_seconds", "v100", 3.6, "", "published", "x")]
    figures += [Figure("memory_bandwidth", gpu, value, "", "published", "x") for gpu, value in (("v100", 900), ("h200", 4800))]
    assert gpu_seconds(config, Costs(figures, "v100")) == 3.6
    assert gpu_seconds(config, Costs(figures, "h200")) == pytest.approx(0.675)
    measured = Figure("stage1_seconds", "h200", 0.2, "", "measured", "x")
    assert gpu_seconds(config, Costs([*figures, measured], "h200")) == 0.2


def test_stage_2_is_the_trunk() -> None:
    config = load(TrainJobConfig, CONFIGS / "stage2.yaml", ["data.view.size=640"])
    assert gpu_seconds(config, costs()) == pytest.approx(0.008)  # 4e11 operations at half of 1e14 a second
    with pytest.raises(ConfigError, match="matching in the run"):
        gpu_seconds(load(TrainJobConfig, CONFIGS / "stage2_online.yaml"), costs())
    with pytest.raises(ConfigError, match="no figures of training with this CLIP; seen: shapes"):
        gpu_seconds(load(TrainJobConfig, CONFIGS / "stage1_shapes.yaml"), costs())


def test_the_text_stage_by_hand() -> None:
    changes = ["captioner.model=a/b-10b", "captioner.concurrency=20", "llm.model=Qwen-5B-x", "llm.concurrency=400"]
    config = load(RefineConfig, CONFIGS / "refine.yaml", changes)
    found = plan_text(config, 8, costs())
    caption = 2e10 * (2000 / 0.5 + 100 / 0.1) / 1e14  # 1 s
    entities = 1e10 * (400 / 0.5 + 100 / 0.1) / 1e14  # 0.18 s
    assert found.limits == pytest.approx(
        {"GPUs": 8 / (caption + entities), "network to S3": 20_000, "captioner.concurrency": 10, "llm.concurrency": 200}
    )
    assert (found.unit, found.bottleneck, found.total) == ("captions", "GPUs", 1e6)
    assert found.hours == pytest.approx(1e6 / (8 / 1.18) / 3600)
    assert plan_text(config, 16, costs()).bottleneck == "captioner.concurrency"
    with pytest.raises(ConfigError, match="parameters"):
        plan_text(load(RefineConfig, CONFIGS / "refine.yaml", ["llm.model=gpt"]), 8, costs())


def test_a_manifest_counts_where_it_can_be_read(shapes_shards: Path, tmp_path: Path) -> None:
    found = data_facts(str(shapes_shards), costs())
    files = sum(path.stat().st_size for path in shapes_shards.rglob("*.parquet"))
    assert (found.image_bytes, found.rows_per_group) == (files / 10, 2.5)
    assert "manifest" in found.source
    assumed = data_facts(str(tmp_path), costs())
    assert (assumed.image_bytes, assumed.rows_per_group) == (1e6, 50)
    assert "was not read" in assumed.source


def test_every_packaged_figure_has_kind_and_source_and_every_one_is_used(config: TrainJobConfig) -> None:
    figures = read_figures()
    assert {figure.kind for figure in figures} <= set(KINDS)
    used = set()
    for gpu in ("v100", "h200"):
        both = Costs(figures, gpu)
        data = data_facts("no/such/folder", both)
        plan_training(config, 56, both, data, SIZE)
        plan_training(load(TrainJobConfig, CONFIGS / "stage2.yaml"), 56, both, data, SIZE)
        plan_text(load(RefineConfig, CONFIGS / "refine.yaml"), 56, both)
        used |= {(figure.name, figure.gpu) for figure in both.used}
    assert used == {(figure.name, figure.gpu) for figure in figures}


@pytest.mark.parametrize("line", ["x,v100,one,s,measured,y", "x,v100,1,s,guessed,y", "x,v100,1,s,measured,"])
def test_a_line_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text(f"name,gpu,value,unit,kind,source\n{line}\n")
    with pytest.raises(ConfigError, match="x"):
        read_figures(tmp_path / "costs.csv")


def test_the_command_prints_columns_and_refuses_an_unknown_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("uniovseg.runtime.plan.s3_credentials", lambda: None)
    monkeypatch.setenv("COLUMNS", "150")
    assert job.main(["--config", str(CONFIGS / "stage1_sa1b.yaml"), "--gpus", "8", "56", "--gpu", "v100"]) == 0
    shown = capsys.readouterr().out
    assert "56 GPUs" in shown and "bottleneck" in shown and "assumed" in shown and "no S3 credentials" in shown
    assert job.main(["--config", str(CONFIGS / "refine.yaml"), "--gpu", "h200"]) == 0
    assert "captions/s" in capsys.readouterr().out
    assert job.main(["--config", str(CONFIGS / "refine.yaml"), "--gpu", "h300"]) == 2
    assert "did you mean 'h200'" in capsys.readouterr().err
    assert job.main(["--config", str(CONFIGS / "refine.yaml"), "--gpus", "0"]) == 2
