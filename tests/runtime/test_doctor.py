"""The doctor's checks on made-up nodes, with hand-computed limits, and on a real S3 server."""

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

from uniovseg import checkpoint, storage
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import to_yaml
from uniovseg.data.shards import ShardSet
from uniovseg.data.views import ViewConfig
from uniovseg.errors import CheckpointError, ConfigError, DataError, StorageError, UniOVSegError
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.runtime import doctor
from uniovseg.runtime.doctor import Finding, Node
from uniovseg.runtime.model_size import model_size
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.runtime.train import TrainJobConfig
from uniovseg.storage import Location
from uniovseg.training import DataConfig

GIB = 1024**3
NODE = Node("a", cpus=8, gpus=0, object_store=2 * GIB, shared_memory=4 * GIB, disk=100 * GIB, free_disk=50 * GIB)


@pytest.fixture
def config(tiny_config: MaskGenerationConfig, shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJobConfig:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = DataConfig(train=str(shapes_shards), view=ViewConfig(size=64))
    return TrainJobConfig(output=str(tmp_path / "deep" / "run"), method=tiny_config, data=data, workers=2, batch_size=4)


def changed(config: TrainJobConfig, **values: object) -> TrainJobConfig:
    return config.model_copy(update=values)


def fails(check: Callable[[], str], kind: type[UniOVSegError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        check()
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts), text


def test_workers_need_a_whole_place_each(config: TrainJobConfig) -> None:
    three = changed(config, workers=3, cpus_per_worker=3)
    assert "room for 4" in doctor.check_workers(three, [NODE, NODE])  # 2 + 2: what is left on two nodes is no place
    fails(lambda: doctor.check_workers(changed(three, workers=5), [NODE, NODE]), ConfigError, "room for 4", "at most 4")
    assert doctor.check_workers(changed(config, cpus_per_worker=0.1, workers=10), [replace(NODE, cpus=1)])


def test_an_elastic_run_needs_places_for_its_fewest_workers_and_rows_for_its_most(config: TrainJobConfig) -> None:
    elastic = changed(config, workers=6, min_workers=3, cpus_per_worker=3, batch_size=10)
    assert doctor.check_workers(elastic, [NODE, NODE]) == "3 to 6 of 3 CPUs each; room for 4"
    fails(lambda: doctor.check_workers(elastic, [NODE]), ConfigError, "room for 2", "min_workers")
    assert doctor.check_data(elastic)  # ten rows over six workers: uneven, as any number between three and six may be
    fails(lambda: doctor.check_data(changed(elastic, min_workers=None)), ConfigError, "multiple of 6")
    fails(lambda: doctor.check_data(changed(elastic, batch_size=4)), ConfigError, "at least 6")


def test_an_elastic_run_begins_with_as_many_workers_as_fit_and_feeds_them_all(config: TrainJobConfig) -> None:
    elastic, node = changed(config, workers=4, min_workers=1), replace(NODE, cpus=4)
    fails(lambda: doctor.check_feed(elastic, [node]), ConfigError, "0 of 4 beside 4 workers", "at least 6")
    fails(lambda: doctor.check_feed(changed(elastic, cpus_per_worker=3), [NODE, NODE]), ConfigError, "4 of 16 beside 4 workers")
    assert doctor.check_feed(changed(elastic, workers=1), [node]) == "3 of 4 are left, 1.5 needed"
    assert doctor.check_feed(changed(elastic, gpus_per_worker=1), [replace(NODE, gpus=2)]) == "6 of 8 are left, 3 needed"
    assert doctor.check_feed(changed(elastic, autoscaled=True), [replace(NODE, cpus=0)]).startswith("0 of 0 are left now, 1.5 needed")


def test_what_an_autoscaled_cluster_lacks_now_is_waited_for_and_files_of_one_machine_are_refused(config: TrainJobConfig, mlflow_uri: str) -> None:
    head = replace(NODE, cpus=0)
    growing = changed(config, autoscaled=True, workers=6, gpus_per_worker=1, start_minutes=20)
    fails(lambda: doctor.check_workers(changed(growing, autoscaled=False), [head]), ConfigError, "room for 0", "autoscaled=true")
    assert "room for 0 now, waits at most 20 minutes" in doctor.check_workers(growing, [head])
    assert "0 of 0 are left now" in doctor.check_feed(growing, [head])
    fails(lambda: doctor.check_shared(growing, [head]), ConfigError, "adds nodes on demand", "s3://")
    tracked = changed(growing, tracking=TrackingConfig(uri=mlflow_uri))
    fails(lambda: doctor.check_shared_tracking(tracked, [head]), ConfigError, "adds nodes on demand", "tracking.uri=null")


def test_workers_need_their_gpus(config: TrainJobConfig) -> None:
    on_gpu = changed(config, gpus_per_worker=1)
    assert doctor.check_workers(on_gpu, [replace(NODE, gpus=2)])
    fails(lambda: doctor.check_workers(on_gpu, [replace(NODE, gpus=1), NODE]), ConfigError, "1 GPUs", "room for 1")


def test_the_feed_needs_cpus_beside_the_workers(config: TrainJobConfig) -> None:
    assert doctor.check_feed(config, [replace(NODE, cpus=5)]) == "3 of 5 are left, 3 needed"
    fails(lambda: doctor.check_feed(config, [replace(NODE, cpus=4)]), ConfigError, "2 of 4", "at least 3", "feed=threads")
    threads = changed(config, data=config.data.model_copy(update={"feed": "threads"}))
    assert "none needed" in doctor.check_feed(threads, [replace(NODE, cpus=2)])
    assert (doctor.slots(config), doctor.slots(threads)) == (5, 2)


def test_a_local_path_is_for_one_node(config: TrainJobConfig, shapes_shards: Path) -> None:
    assert doctor.check_shared(config, [NODE]) == "one node"
    fails(lambda: doctor.check_shared(config, [NODE, NODE]), ConfigError, "2 nodes", f"output={config.output}", f"data.train={shapes_shards}")
    shared = changed(config, output="s3://b/run", init="shapes", data=config.data.model_copy(update={"train": "s3://b/shards"}))
    assert doctor.check_shared(shared, [NODE, NODE])
    fails(lambda: doctor.check_shared(changed(shared, init="/weights"), [NODE, NODE]), ConfigError, "init=/weights")
    blind = replace(NODE, name="b", unreadable="access denied")
    fails(lambda: doctor.check_shared(shared, [NODE, blind]), StorageError, "1 of 2 nodes", "b: access denied")


def test_a_node_needs_the_file_of_weights_at_its_path(tmp_path: Path) -> None:
    weights = tmp_path / "clip.safetensors"
    assert doctor._look(NODE, None, str(weights)).unreadable == f"{weights} is not there"
    weights.write_bytes(b"")
    assert doctor._look(NODE, None, str(weights)).unreadable == ""


@pytest.mark.parametrize("uri", ["sqlite:///runs/mlflow.db", "file:///runs/mlruns", "runs/mlruns", "/runs/mlruns"])
def test_a_tracking_file_is_for_one_node(config: TrainJobConfig, uri: str) -> None:
    tracked = changed(config, tracking=TrackingConfig(uri=uri))
    assert doctor.check_shared_tracking(tracked, [NODE]) == "one node"
    fails(lambda: doctor.check_shared_tracking(tracked, [NODE, NODE]), ConfigError, "MLflow", "http")
    assert doctor.check_shared_tracking(changed(config, tracking=TrackingConfig(uri="http://mlflow:5000")), [NODE, NODE]) == "a server"


def test_shared_memory_holds_the_object_store(config: TrainJobConfig) -> None:
    small = replace(NODE, name="b", shared_memory=64 * 1024**2)
    assert "every node" in doctor.check_shared_memory(config, [NODE, replace(NODE, shared_memory=None)])
    assert "slow, not wrong: 64.0 MiB on b, 1 of 2" in doctor.check_shared_memory(config, [NODE, small])
    fails(lambda: doctor.check_shared_memory(changed(config, gpus_per_worker=1), [NODE, small]), ConfigError, "64.0 MiB", "2.0 GiB", "--shm-size")


def test_disks_hold_the_checkpoints(config: TrainJobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    size = model_size(config.method).checkpoint_bytes
    assert doctor.check_disk(config, [NODE])
    fails(lambda: doctor.check_disk(config, [NODE, replace(NODE, name="b", free_disk=4 * GIB)]), StorageError, "b", "96% in use", "TMPDIR")
    fails(lambda: doctor.check_disk(config, [replace(NODE, disk=size, free_disk=size - 1)]), StorageError, "for 1 checkpoints")
    remote, small = changed(config, output="s3://b/run", workers=20), replace(NODE, cpus=3, disk=4 * size, free_disk=4 * size)
    assert doctor.check_disk(remote, [small])  # one on its way up, and one that each of three workers goes on from
    fails(lambda: doctor.check_disk(remote, [replace(small, free_disk=4 * size - 1)]), StorageError, "for 4 checkpoints")
    usage = shutil.disk_usage("/")._replace(free=4 * size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert doctor.check_disk(changed(config, keep_checkpoints=2), [NODE])
    fails(lambda: doctor.check_disk(changed(config, keep_checkpoints=3), [NODE]), StorageError, "no room", "keep_checkpoints")


def test_a_local_output_is_tried_without_leaving_anything(config: TrainJobConfig, tmp_path: Path) -> None:
    assert "written, read, deleted" in doctor.check_output(config)
    assert list(tmp_path.iterdir()) == []


def test_an_output_on_s3_is_tried_without_leaving_a_file(config: TrainJobConfig, s3_bucket: str) -> None:
    remote = changed(config, output=f"{s3_bucket}/run")
    assert "found by env" in doctor.check_credentials(remote)
    assert "written, read, deleted" in doctor.check_output(remote)
    assert storage.list_files(Location.of(remote.output)) == []
    fails(lambda: doctor.check_output(changed(config, output=f"{s3_bucket}-other/run")), StorageError, "cannot be used", "credentials")
    names = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=s3_bucket.removeprefix("s3://")).get("Contents", [])]
    assert not any(".doctor" in name for name in names)


def test_s3_without_credentials_is_found_at_once(config: TrainJobConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "none needed" in doctor.check_credentials(config)
    remote = changed(config, output="s3://b/run")
    fails(lambda: doctor.check_credentials(remote), StorageError, "no S3 credentials", "s3:// in output", "every node")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {finding.check: finding.well for finding in doctor.examine(remote)}
    assert not found["credentials"] and not found["output, data, checkpoints"] and "output" not in found


def test_another_runs_checkpoints_are_found(config: TrainJobConfig) -> None:
    assert doctor.check_same_run(config) == "a new run"
    fails(lambda: doctor.check_same_run(changed(config, resume=True)), CheckpointError, "nothing to resume", str(config.output))
    dumped = config.model_dump(mode="json")
    for step in (20, 100):
        info = CheckpointInfo(step=step, method=dumped["method"], config=dumped, layout=ShardSet(config.data.train).layout)
        folder = Path(config.output) / f"step_{step:07d}"
        folder.mkdir(parents=True)
        (folder / checkpoint.MANIFEST).write_text(info.model_dump_json())
    assert "after step 100" in doctor.check_same_run(config)
    assert "after step 100" in doctor.check_same_run(changed(config, workers=4, log_every=7, resume=True))
    fails(lambda: doctor.check_same_run(changed(config, seed=7)), CheckpointError, "another configuration", "seed")
    below = Path(config.output) / "tuned/step_0000900"
    below.mkdir(parents=True)
    (below / checkpoint.MANIFEST).write_text("of another run, whose folder is below this one's")
    assert "after step 100" in doctor.check_same_run(config)
    (folder / checkpoint.MANIFEST).write_text(info.model_copy(update={"layout": "another"}).model_dump_json())
    fails(lambda: doctor.check_same_run(config), CheckpointError, "training set", "allowed: another")


def test_missing_data_and_weights_are_found(config: TrainJobConfig, tmp_path: Path, mlflow_uri: str) -> None:
    assert doctor.check_data(config) == "10 samples in 2 shards"
    missing = changed(config, data=config.data.model_copy(update={"train": str(tmp_path)}))
    fails(lambda: doctor.check_data(missing), DataError, "no manifest", str(tmp_path))
    fails(lambda: doctor.check_data(changed(config, batch_size=5)), ConfigError, "batch_size", "multiple of 2")
    assert doctor.check_init(config) == "random"
    assert doctor.check_init(changed(config, init="shapes")) == "shapes, packaged"
    fails(lambda: doctor.check_init(changed(config, init=str(tmp_path / "none"))), CheckpointError, "no checkpoint", "model/")
    fails(lambda: doctor.check_init(changed(config, init="models:/uniovseg/3")), CheckpointError, "no registry")
    tracked = changed(config, tracking=TrackingConfig(uri=mlflow_uri))
    fails(lambda: doctor.check_init(changed(tracked, init="models:/uniovseg/3")), CheckpointError, "no such registered model")
    fails(lambda: doctor.check_init(changed(tracked, init="models:/uniovseg")), CheckpointError, "models:/name/version")


@pytest.fixture
def fresh_token() -> Iterator[Callable[[], None]]:
    """Makes Ray look for the token anew, now and after the test."""
    forget = AuthenticationTokenLoader.instance().reset_cache
    yield forget
    forget()


def test_a_token_is_asked_for_where_the_mode_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_token: Callable[[], None]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor.check_token().startswith("off")
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert doctor.check_token().startswith("on"), "a cluster of one's own"

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    fresh_token()
    assert "needs RAY_AUTH_MODE=token" in doctor.check_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert doctor.check_token() == "on"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    fresh_token()
    fails(doctor.check_token, ConfigError, "no token for the cluster", "127.0.0.1:6379", "get-auth-token")


def test_the_launch_ends_at_the_first_error_and_the_table_holds_all() -> None:
    called = []

    def good() -> str:
        called.append("good")
        return "fine"

    def bad() -> str:
        raise StorageError("full")

    checks: list[doctor.Check] = [("a", good), ("b", bad), ("c", good)]
    with pytest.raises(StorageError, match="full"):
        doctor.require(checks)
    assert called == ["good"]
    assert doctor.diagnose(checks) == [Finding("a", True, "fine"), Finding("b", False, "full"), Finding("c", True, "fine")]


def test_the_command_shows_a_table_and_its_exit_code(config: TrainJobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uniovseg.__main__ import main

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    assert main(["doctor", "--config", str(file)]) == 0
    assert main(["doctor", "--config", str(file), "batch_size=5"]) == 1
    assert main(["doctor", "--config", str(file), "batch_sice=5"]) == 2


@pytest.mark.cluster
def test_a_process_on_the_node_looks_around(ray_cluster: None, config: TrainJobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = doctor.cluster_nodes(config)
    assert own.cpus >= 5 and own.disk >= own.free_disk > 0 and own.object_store > 0
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")  # then a task looks, not this process
    (seen,) = doctor.cluster_nodes(config)
    assert (seen.name, seen.cpus, seen.disk, seen.shared_memory) == (own.name, own.cpus, own.disk, own.shared_memory)
