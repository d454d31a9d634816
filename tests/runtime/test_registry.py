"""The registry of an SQLite store: what goes in comes out, by version and alias; whoever asks for what is not there is told what is."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from botocore.exceptions import EndpointConnectionError
from pydantic import Field

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import Config
from uniovseg.data.images import decode_image
from uniovseg.errors import CheckpointError, StorageError
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.records import ImageMasks
from uniovseg.runtime import registry
from uniovseg.runtime.delivery import connect
from uniovseg.runtime.tracking import IDENTITY, Run, TrackingConfig, tracked_run
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location


class Job(Config):
    output: str = Field("out", description="")
    checkpoint: str = Field("shapes", description="")
    init: str | None = Field(None, description="")
    tracking: TrackingConfig = Field(TrackingConfig(), description="")


@pytest.fixture(scope="module")
def tracking(mlflow_uri: str) -> TrackingConfig:
    return TrackingConfig(uri=mlflow_uri, experiment="registry", register_as="tiny", patience=0)


@pytest.fixture(scope="module")
def model(tiny_method: MaskGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    info = CheckpointInfo(step=7, method=tiny_method.config.model_dump(mode="json"), metrics={"val_box_iou": 0.25})
    checkpoint.save(folder, info, tiny_method.state(), {"adam/x": tiny_method.state()[next(iter(tiny_method.state()))]})
    return folder


@pytest.fixture(scope="module")
def registered(tracking: TrackingConfig, model: Path) -> str:
    """Two versions; the first is the champion."""
    with tracked_run(tracking, "training", Job()) as run:
        first, second = (registry.register_finished(run, tracking, Location.of(model)) for _ in range(2))
    assert (first, second) == ("models:/tiny/1", "models:/tiny/2")
    assert tracking.uri is not None
    connect(tracking.uri).set_registered_model_alias("tiny", "champion", "1")
    return str(second)


def test_a_registered_model_is_the_checkpoint_with_a_signature_and_no_pickle(tracking: TrackingConfig, registered: str, model: Path) -> None:
    assert tracking.uri is not None
    version = connect(tracking.uri).get_model_version("tiny", "2")
    assert version.tags == {"method": "mask_generation", "step": "7", "val_box_iou": "0.25"}
    folder = Path(registry.local_source(version.source) or "")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "MLmodel", "checkpoint/checkpoint.json", "checkpoint/model.safetensors",
    ]  # fmt: skip
    assert (folder / "checkpoint" / checkpoint.MODEL).read_bytes() == (model / checkpoint.MODEL).read_bytes()
    signature = mlflow.models.Model.load(str(folder)).signature
    assert [column.name for column in signature.inputs.inputs] == ["image", "vocabulary"]


@pytest.mark.parametrize("uri", ["models:/tiny/2", "models:/tiny@champion"])
def test_what_is_loaded_segments_as_what_was_registered(
    uri: str, registered: str, tracking: TrackingConfig, tiny_method: MaskGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    expected = Segmenter(tiny_method).boxes(image, [(5, 5, 30, 40)])
    assert registry.load_segmenter(uri, tracking=tracking).boxes(image, [(5, 5, 30, 40)]) == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    assert registry.load_segmenter(uri).boxes(image, [(5, 5, 30, 40)]) == expected


def test_mlflow_loads_and_runs_it_too(registered: str, tracking: TrackingConfig, tiny_method: MaskGeneration, scenes: list[ImageMasks]) -> None:
    assert tracking.uri is not None
    source = registry.find(registered, tracking.uri).source
    loaded = mlflow.pyfunc.load_model(source)
    (row,) = loaded.predict(pd.DataFrame({"image": [scenes[0].image], "vocabulary": ["red circle, grass"]}))["regions"]
    expected = Segmenter(tiny_method).segment(decode_image(scenes[0].image), "red circle, grass").regions
    assert [(item["word"], item["area"], item["rle"]["counts"]) for item in json.loads(row)] == [
        (region.word, region.area, region.rle["counts"]) for region in expected
    ]


def test_jobs_get_a_folder_that_needs_no_registry(registered: str, tracking: TrackingConfig, tmp_path: Path) -> None:
    job = Job(output=str(tmp_path), checkpoint="models:/tiny@champion", init=registered, tracking=tracking)
    found = registry.with_files(job)
    assert found.init is not None
    for folder in (found.checkpoint, found.init):
        assert checkpoint.read_info(Path(folder)).step == 7
    assert found.output == job.output
    assert registry.with_files(Job()) == Job()


def test_a_proxied_model_is_copied_to_the_output_once(
    registered: str, tracking: TrackingConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def download(found: registry.Registered, uri: str | None, target: str) -> Path:
        downloads.append(found.uri)
        return model

    monkeypatch.setattr(registry, "local_source", lambda source: None)  # as of a source that the tracking server hands out
    monkeypatch.setattr(registry, "_download", download)
    job = Job(output=str(tmp_path), init=registered, tracking=tracking)
    assert registry.with_files(job).init == registry.with_files(job).init == f"{tmp_path}/registered/tiny-2"
    assert downloads == [registered]
    assert checkpoint.read_info(tmp_path / "registered/tiny-2").step == 7


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/tiny/9", ["no such registered model", "models:/tiny/9", "tiny/1; tiny/2; tiny@champion (version 1)"]),
        ("models:/tiny@challenger", ["tiny@champion (version 1)"]),
        ("models:/other/1", ["allowed: tiny"]),
        ("models:/tiny", ["models:/name/version or models:/name@alias"]),
        ("models:/tiny/1@champion", ["models:/name/version or models:/name@alias"]),
        ("models:/@champion", ["models:/name/version or models:/name@alias"]),
    ],
)
def test_errors_say_what_is_there(uri: str, expected: list[str], registered: str, tracking: TrackingConfig) -> None:
    with pytest.raises(CheckpointError) as caught:
        registry.find(uri, tracking.uri)
    assert all(part in str(caught.value) for part in expected)


def test_without_a_registry_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(CheckpointError, match="MLFLOW_TRACKING_URI"):
        registry.load_segmenter("models:/tiny/1")


def test_a_model_that_is_none_of_ours_is_refused(tracking: TrackingConfig, tmp_path: Path) -> None:
    assert tracking.uri is not None
    client = connect(tracking.uri)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(tmp_path))
    with pytest.raises(CheckpointError, match="none of uniovseg's"):
        registry.load_segmenter("models:/foreign/1", tracking=tracking)


def test_a_registry_that_is_away_does_not_fail_a_job_and_the_model_can_be_registered_later(
    tracking: TrackingConfig,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    away = "http://127.0.0.1:9"
    folder = Location.of(tmp_path)
    run = Run(away, "0" * 32, folder, patience=0)
    assert registry.register_finished(run, tracking, Location.of(model)) is None
    assert f"python -m uniovseg.runtime.registry {tmp_path} tiny" in caplog.text
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="cannot be used"):

        def no_store(*_: object) -> str:
            raise EndpointConnectionError(endpoint_url="http://store")

        patch.setattr(registry, "_register", no_store)
        registry.register(run, Location.of(model), "tiny")
    with pytest.raises(StorageError, match="cannot be used"):
        registry.find("models:/tiny/1", away)
    with tracked_run(tracking, "training", Job(), folder=folder, resume="always"):
        pass
    assert (tmp_path / IDENTITY).is_file()
    (tmp_path / "model").symlink_to(model)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    assert registry.main([str(tmp_path), "later"]) == 0
    assert capsys.readouterr().out == "models:/later/1\n"
    assert registry.main([str(tmp_path)]) == 2
