"""The jobs' command lines: what they print resolves to itself, and a wrong call is one line and exit code 2."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import _cli, evaluate, ingest, make_shapes, match, plan, predict, pretrain_clip, quickstart, real, refine, reproduce, train
from jobs import benchmark as benchmark_job
from uniovseg.config import Config, fields, key_help
from uniovseg.data.shapes_sets import ShapesConfig
from uniovseg.errors import ConfigError
from uniovseg.runtime.ingest import IngestConfig
from uniovseg.runtime.match import MatchConfig
from uniovseg.runtime.predict import PredictConfig
from uniovseg.runtime.pretrain import PretrainJobConfig
from uniovseg.runtime.quickstart import QuickstartConfig
from uniovseg.runtime.real import RealConfig
from uniovseg.runtime.refine import RefineConfig
from uniovseg.runtime.reproduce.job import ReproduceConfig
from uniovseg.runtime.shards import write_manifest
from uniovseg.runtime.train import TrainJobConfig
from uniovseg.storage import Location

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"

JOBS: dict[str, tuple[type[Config], Callable[[Any], dict[str, Any]], list[str]]] = {
    "train": (TrainJobConfig, train.main, ["--config", str(CONFIGS / "stage1_shapes.yaml"), "optim.lr=3e-4", "workers=2"]),
    "train_full": (TrainJobConfig, train.main, ["--config", str(CONFIGS / "stage1_sa1b.yaml"), "method.generator.decoder_layers=3"]),
    "train_stage2": (TrainJobConfig, train.main, ["--config", str(CONFIGS / "stage2.yaml"), "method.adapter.rank=16"]),
    "train_stage2_online": (TrainJobConfig, train.main, ["--config", str(CONFIGS / "stage2_online.yaml"), "data.online.pairing.max_masks=50"]),
    "refine": (RefineConfig, refine.main, ["--config", str(CONFIGS / "refine.yaml"), "captioner.concurrency=3"]),
    "refine_shapes": (RefineConfig, refine.main, ["--config", str(CONFIGS / "refine_shapes.yaml"), "part_samples=64"]),
    "match": (MatchConfig, match.main, ["--config", str(CONFIGS / "match.yaml"), "pairing.max_masks=50"]),
    "reproduce": (ReproduceConfig, reproduce.main, ["--config", str(CONFIGS / "reproduce.yaml"), "table=3", "shapes.align_steps=7"]),
    "predict": (PredictConfig, predict.main, ["--config", str(CONFIGS / "predict.yaml"), "images_per_part=3"]),
    "make_shapes": (ShapesConfig, make_shapes.main, ["scene.size=96", "image_masks=5"]),
    "pretrain_clip": (PretrainJobConfig, pretrain_clip.main, ["--config", str(CONFIGS / "shapes_clip.yaml"), "seed=4"]),
}


@pytest.mark.parametrize("name", JOBS)
def test_what_dry_run_prints_is_a_configuration_of_the_same_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_type, main, arguments = JOBS[name]
    assert _cli.run(config_type, main, [*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    again = tmp_path / "printed.yaml"
    again.write_text(printed)
    assert _cli.run(config_type, main, ["--config", str(again), "--dry-run"]) == 0
    assert capsys.readouterr().out == printed
    values = yaml.safe_load(printed)
    for override in arguments:
        if "=" in override:
            path, _, value = override.partition("=")
            found = values
            for key in path.split("."):
                found = found[key]
            assert float(found) == float(value)


@pytest.mark.parametrize(
    ("arguments", "job", "resume"),
    [([], "shapes", False), (["steps=7", "--resume"], "shapes", True), (["--resume", "--config", str(CONFIGS / "stage1_real.yaml")], "given", True)],
)
def test_train_without_a_configuration_is_the_shapes_preset(
    arguments: list[str], job: str, resume: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[str, TrainJobConfig]] = []

    def called(name: str) -> Callable[[TrainJobConfig], dict[str, object]]:
        return lambda config: seen.append((name, config)) or {}  # type: ignore[func-returns-value]

    monkeypatch.setattr(train, "fit", called("given"))
    monkeypatch.setattr(train, "train_on_shapes", called("shapes"))
    monkeypatch.chdir(tmp_path)
    assert train.command(arguments) == 0
    ((name, config),) = seen
    assert (name, config.resume) == (job, resume)
    assert config.output == ("runs/stage1_shapes" if job == "shapes" else "runs/stage1_real")
    assert config.steps == (7 if "steps=7" in arguments else 600)


@pytest.mark.parametrize("config_type", [TrainJobConfig, PretrainJobConfig, IngestConfig, PredictConfig, RefineConfig, ShapesConfig])
def test_help_lists_every_key_with_its_default(config_type: type[Config]) -> None:
    shown = key_help(config_type)
    for field in fields(config_type):
        assert f"  {field.key}  [{field.type}]  default: {field.default}\n      {field.description}" in shown


@pytest.mark.parametrize("main", [evaluate.main, benchmark_job.main])
@pytest.mark.parametrize("arguments", [[], ["nothing_such"]])
def test_jobs_with_a_subject_ask_for_it(main: Callable[[Sequence[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"seen: {arguments[0] if arguments else 'nothing'}; allowed: " in error


@pytest.mark.parametrize(("main", "subject"), [(evaluate.main, "promptable"), (benchmark_job.main, "serve_load")])
def test_jobs_with_a_subject_list_them(main: Callable[[Sequence[str]], int], subject: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert subject in capsys.readouterr().out


def test_evaluate_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["promptable"]) == 2
    assert "give either benchmark or annotations; seen: neither; allowed: a benchmark is one of coco_instances, " in capsys.readouterr().err
    assert evaluate.main(["promptable", "benchmark=egohos", f"root={tmp_path}"]) == 1
    assert "egohos is not here" in capsys.readouterr().err
    (tmp_path / "one.json").write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}')
    assert evaluate.main(["promptable", f"annotations={tmp_path}/one.json", f"checkpoint={tmp_path}", f"output={tmp_path}/out"]) == 1
    error = capsys.readouterr().err
    assert "error: no checkpoint here" in error
    assert not (tmp_path / "out" / "report.json").exists()


def test_pairs_that_are_not_there_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(Location.of(tmp_path / "pairs"), [])
    assert match.show([str(tmp_path / "pairs"), "--out", str(tmp_path / "pairs.png")]) == 1
    assert capsys.readouterr().err.startswith("error: the set has no pairs; seen: the first 20 images of")


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (match.show, [], "error: the following arguments are required: pairs; see jobs/match.py show --help"),
        (match.show, ["x", "--n", "two"], "error: argument --n: invalid int value: 'two'; see "),
        (plan.main, ["--config", "stage1_sa1b.yaml", "--gpuz=8"], "error: unrecognized arguments: --gpuz=8 (did you mean '--gpu'?); see "),
    ],
)
def test_wrong_options_are_one_line(
    command: Callable[[Sequence[str]], int], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1


def test_make_shapes_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"output={tmp_path}", "image_masks=0", "image_text=0", "evaluation=0"]
    assert _cli.run(ShapesConfig, make_shapes.main, settings) == 0
    assert yaml.safe_load((tmp_path / "report.json").read_text()) == {"image_masks": 0, "image_text": 0, "evaluation": 0}
    assert "report.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config_type", "main", "settings"),
    [(ShapesConfig, make_shapes.main, []), (PretrainJobConfig, pretrain_clip.main, ["--config", str(CONFIGS / "shapes_clip.yaml"), "tracking.uri="])],
)
def test_an_output_that_must_be_local_is_never_a_folder_named_s3(
    config_type: type[Config], main: Any, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _cli.run(config_type, main, [*settings, "output=s3://bucket/out"]) == 2
    assert "seen: s3://bucket/out; allowed: a local path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class TestJobsThatBeginAnew:
    """The quickstart, and `real` on real images, delete folders of their output: their own alone."""

    @pytest.fixture(params=["quickstart", "real"])
    def name(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr(quickstart, "quickstart", lambda config: {"output": config.output})
        monkeypatch.setattr(real, "real", lambda config: {"output": config.output})
        monkeypatch.setattr(real, "real_data", lambda: None)
        return str(request.param)

    def begin(self, name: str, output: str) -> dict[str, object]:
        return quickstart.main(QuickstartConfig(output=output)) if name == "quickstart" else real.main(RealConfig(output=output))

    def test_folders_of_others_are_kept(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "shards").mkdir()
        (tmp_path / "report.json").write_text('{"samples": 5}')  # of another job
        with pytest.raises(ConfigError, match=f"no mark of an earlier run of it; seen: {tmp_path}/shards; allowed: an empty folder"):
            self.begin(name, str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {"shards", "report.json"}

    def test_an_earlier_run_is_deleted_also_one_that_broke_off(self, name: str, tmp_path: Path) -> None:
        output = tmp_path / "out"
        for _ in range(2):
            assert self.begin(name, f"file://{output}") == {"output": str(output)}
            assert not (output / "shards").exists()
            (output / "shards" / "deep").mkdir(parents=True)
            (output / "mine").mkdir(exist_ok=True)
        assert (output / "mine").exists()

    def test_a_run_without_a_mark_is_known_by_its_report(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "stage1").mkdir()
        (tmp_path / "report.json").write_text('{"promptable": {}}')
        self.begin(name, str(tmp_path))
        assert not (tmp_path / "stage1").exists()

    def test_a_store_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="seen: s3://bucket/out"):
            self.begin(name, "s3://bucket/out")


def test_ingest_without_its_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.run(IngestConfig, ingest.main, [f"output={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: source is missing; it has no default; allowed: str (")
    assert list(tmp_path.iterdir()) == []
