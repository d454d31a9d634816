"""MLflow's model registry: finished models go in as our checkpoint folders, and come out by name and version or alias.

>>> load_segmenter("models:/uniovseg/3").segment("photo.jpg", ["cat", "grass"])

What is registered is safetensors and JSON with MLflow's description beside them: nothing is pickled and no code is stored. `mlflow.pyfunc.load_model`
loads it too, where this package is installed.
"""

import dataclasses
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from uniovseg import checkpoint, storage
from uniovseg.config import Config
from uniovseg.errors import CheckpointError, ConfigError, StorageError, UniOVSegError, tell
from uniovseg.runtime.delivery import connect, said, without_credentials
from uniovseg.runtime.tracking import IDENTITY, Run, TrackingConfig
from uniovseg.storage import Location

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from uniovseg.segmenter import Segmenter

logger = logging.getLogger(__name__)

FOLDER, DATA = "model", "checkpoint"
"""Folder of the model among the run's artifacts, and of the checkpoint in it."""

KEYS = ("checkpoint", "init")
"""Keys of jobs' configurations that may name a registered model."""


@dataclass(frozen=True, slots=True)
class Registered:
    """One version of a registered model: its URI without an alias, and where its files lie, as MLflow says it."""

    uri: str
    source: str


def find(uri: str, tracking_uri: str | None) -> Registered:
    """The model version that ``models:/name/version`` or ``models:/name@alias`` means.

    Raises:
        CheckpointError: not such a URI, no registry, or no such model; says what is there.
        StorageError: the tracking server does not answer.
    """
    from mlflow.exceptions import MlflowException

    name, at, alias = uri.removeprefix(checkpoint.REGISTERED).partition("@")
    name, _, version = name.partition("/")
    if not name or bool(alias) == bool(version) or (at and not alias):
        raise CheckpointError("not the URI of a registered model", seen=uri, allowed="models:/name/version or models:/name@alias")
    if tracking_uri is None:
        raise CheckpointError("there is no registry to look in", seen=uri, fix="set tracking.uri or MLFLOW_TRACKING_URI")
    client = connect(tracking_uri)
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
        return Registered(f"{checkpoint.REGISTERED}{name}/{found.version}", client.get_model_version_download_uri(name, found.version))
    except MlflowException as error:
        if error.get_http_status_code() not in (400, 404):
            raise _away(tracking_uri, error) from error
        raise CheckpointError("no such registered model", seen=uri, allowed=_there(client, name)) from error


def _there(client: "MlflowClient", name: str) -> str:
    """What the registry has: the versions and aliases of a model, or the names of all."""
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        return ", ".join(sorted(models)) or "nothing: no model is registered here"
    versions = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
    aliases = [f"{name}@{alias} (version {version})" for alias, version in sorted(models[name].aliases.items())]
    return "; ".join([f"{name}/{version}" for version in versions[-10:]] + aliases)


def _away(uri: str, error: Exception) -> StorageError:
    seen = f"{without_credentials(uri)}: {said(error)}"
    return StorageError("the model registry cannot be used", seen=seen, fix="does the tracking server run, and may these credentials use it?")


def local_source(source: str) -> str | None:
    """The path or s3:// URI of a model's files where one can be had without MLflow; None where the tracking server hands them out."""
    scheme = urlsplit(source).scheme
    if scheme == "file":
        return unquote(urlsplit(source).path)
    return source if scheme in ("", "s3") else None


@contextmanager
def opened(uri: str, tracking_uri: str | None) -> Iterator[Path]:
    """A registered model's checkpoint as a local folder. Raises as `find`, and CheckpointError where it holds no checkpoint of ours."""
    found = find(uri, tracking_uri)
    near = local_source(found.source)
    if near is not None:
        with storage.local_copy(f"{near}/{DATA}") as folder:
            _require(folder, found)
            yield folder
        return
    with tempfile.TemporaryDirectory() as target:
        folder = _download(found, tracking_uri, target)
        _require(folder, found)
        yield folder


def _download(found: Registered, tracking_uri: str | None, target: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(f"{found.source}/{DATA}", dst_path=target, tracking_uri=tracking_uri))
    except (MlflowException, OSError) as error:
        raise _away(str(tracking_uri), error) from error


def _require(folder: Path, found: Registered) -> None:
    if not (folder / checkpoint.MANIFEST).is_file():
        raise CheckpointError("the registered model is none of uniovseg's", seen=found.uri, allowed=f"a model with {DATA}/{checkpoint.MANIFEST}")


def load_segmenter(
    uri: str | Path = "shapes", device: str = "cpu", changes: Mapping[str, Any] | None = None, tracking: TrackingConfig | None = None
) -> "Segmenter":
    """`Segmenter.load`, which also takes ``models:/name/version`` and ``models:/name@alias``.

    Args:
        uri: as `Segmenter.load`'s, or that of a registered model.
        device, changes: as there.
        tracking: whose registry; None: that of MLFLOW_TRACKING_URI.
    """
    from uniovseg.segmenter import Segmenter

    if not str(uri).startswith(checkpoint.REGISTERED):
        return Segmenter.load(uri, device, changes)
    with opened(str(uri), (tracking or TrackingConfig()).resolve()) as folder:
        return Segmenter.load(folder, device, changes)


ConfigT = TypeVar("ConfigT", bound=Config)


def with_files(config: ConfigT) -> ConfigT:
    """A job's configuration with registered models (`KEYS`) replaced by checkpoint folders that every worker can read without MLflow.

    That is where the registry keeps the files, if it can be read from there, else a copy in the job's output.
    """
    changes = {}
    for key in KEYS:
        uri = getattr(config, key, None)
        if isinstance(uri, str) and uri.startswith(checkpoint.REGISTERED):
            changes[key] = _files(uri, getattr(config, "tracking").resolve(), Location.of(getattr(config, "output")))  # noqa: B009
    return config.model_copy(update=changes) if changes else config


def _files(uri: str, tracking_uri: str | None, output: Location) -> str:
    found = find(uri, tracking_uri)
    folder = files_of(found, output)
    if local_source(found.source) is None and not storage.exists(folder / checkpoint.MANIFEST):
        with opened(found.uri, tracking_uri) as copy:
            storage.upload_folder(copy, folder, checkpoint.MANIFEST)
    return folder.uri


def files_of(found: Registered, output: Location) -> Location:
    """The checkpoint folder that `with_files` puts in place of a registered model for a job with that output."""
    near = local_source(found.source)
    return output / "registered" / found.uri.removeprefix(checkpoint.REGISTERED).replace("/", "-") if near is None else Location(f"{near}/{DATA}")


def register(run: Run, model: Location, name: str) -> str:
    """Register a checkpoint folder as a new version of `name`, from the run that made it; returns its URI ``models:/name/version``.

    Raises:
        StorageError: the tracking server did not answer for as long as the run is patient.
        CheckpointError: there is no checkpoint in the folder.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    assert run.uri is not None and run.run_id is not None
    client = connect(run.uri)
    ends = time.monotonic() + run.patience
    attempt = 0
    with tempfile.TemporaryDirectory() as folder:
        tags = _describe(Path(folder), model, run.run_id)
        while True:
            try:
                return _register(client, run, Path(folder), name, tags)
            except (MlflowException, OSError, Boto3Error, BotoCoreError, ClientError) as error:  # the artifacts may lie in S3
                permanent = isinstance(error, MlflowException) and error.get_http_status_code() in (400, 401, 403, 404)
                if permanent or time.monotonic() > ends:
                    raise _away(run.uri, error) from error
                storage.pause(attempt + 2)
                attempt += 1


def register_finished(run: Run, tracking: TrackingConfig, model: Location) -> str | None:
    """Register a job's model as its configuration asks; None where it does not. A registry that is away does not fail the job: a warning says what to do."""
    if tracking.register_as is None or run.run_id is None:
        return None
    try:
        return register(run, model, tracking.register_as)
    except StorageError as error:
        folder = run.folder.uri if run.folder else "FOLDER"
        logger.warning("the model is not registered: %s; later: python -m uniovseg.runtime.registry %s %s", error, folder, tracking.register_as)
        return None


def _describe(folder: Path, model: Location, run_id: str) -> dict[str, str]:
    """Write the model as MLflow wants it into a local folder; returns tags for its version."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    (folder / DATA).mkdir()
    with storage.local_copy(model) as source:
        info = checkpoint.read_info(source)
        for file in (checkpoint.MODEL, checkpoint.MANIFEST):
            shutil.copyfile(source / file, folder / DATA / file)
    inputs = Schema([ColSpec("binary", "image"), ColSpec("string", "vocabulary")])
    description = Model(artifact_path=FOLDER, run_id=run_id, signature=ModelSignature(inputs, Schema([ColSpec("string", "regions")])))
    pyfunc.add_to_model(description, loader_module=__name__, data=DATA)
    description.save(str(folder / "MLmodel"))
    return {"method": str(info.method.get("name")), "step": str(info.step)} | {key: f"{value:.6g}" for key, value in info.metrics.items()}


def _register(client: "MlflowClient", run: Run, folder: Path, name: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    client.log_artifacts(run.run_id, str(folder), FOLDER)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run.run_id).info.artifact_uri}/{FOLDER}"
    version: ModelVersion = client.create_model_version(name, source, run_id=run.run_id, tags=tags)
    return f"{checkpoint.REGISTERED}{name}/{version.version}"


class _Pyfunc:
    """What `mlflow.pyfunc.load_model` gives: a table of images (encoded files) and vocabularies in, the regions of panoptic maps out, as JSON."""

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """One row an image: column ``regions``, a JSON list of regions with word, score, box_xyxy, area and COCO RLE."""
        import pandas as pd

        from uniovseg.data.images import decode_image

        found = []
        for image, vocabulary in zip(model_input["image"], model_input["vocabulary"], strict=True):
            regions = self.segmenter.segment(decode_image(image), vocabulary).regions
            found.append(json.dumps([dataclasses.asdict(region) for region in regions]))
        return pd.DataFrame({"regions": found})


def _load_pyfunc(path: str) -> _Pyfunc:
    """MLflow calls this with the folder of the checkpoint."""
    return _Pyfunc(load_segmenter(path))


def main(argv: Sequence[str]) -> int:
    """``python -m uniovseg.runtime.registry FOLDER NAME``: register the model in a training's folder, which its own job could not."""
    try:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if len(argv) != 2 or not uri:
            raise ConfigError("which run and name?", allowed="MLFLOW_TRACKING_URI=... python -m uniovseg.runtime.registry FOLDER NAME")
        folder = Location.of(argv[0])
        run_id = json.loads(storage.read_bytes(folder / IDENTITY))["run_id"]
        sys.stdout.write(register(Run(TrackingConfig().resolve(), run_id, folder), folder / "model", argv[1]) + "\n")
    except UniOVSegError as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
