"""From tars to pairs, all on a real object store behind a network that fails: what is written must be what a good network gives, byte for byte."""

import copy
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from tests.data.sa1b_samples import make_record
from tests.object_store import make_bucket
from uniovseg import checkpoint, storage
from uniovseg.benchmarks.fault_proxy import FAULTS, FaultProxy, Weather
from uniovseg.benchmarks.object_store import ObjectStore
from uniovseg.config import load
from uniovseg.data.coco import write_sa1b_tars
from uniovseg.data.shapes import SceneConfig, image_text
from uniovseg.data.shards import ShardSet
from uniovseg.runtime import ingest as ingest_module
from uniovseg.runtime import refine as refine_module
from uniovseg.runtime.datasets import PlannedRows
from uniovseg.runtime.ingest import IngestConfig, ingest
from uniovseg.runtime.match import MatchConfig, match
from uniovseg.runtime.refine import RefineConfig, refine_here
from uniovseg.runtime.shards import PartRange, write_manifest, write_part
from uniovseg.storage import Location

pytestmark = pytest.mark.cluster

SAMPLES, TEXTS = 60, 12


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are done in this process, so that the proxy's draw falls on the work and not on Ray's start."""

    def run_parts(parts: Sequence[Any], work: Callable[[Any], Any], title: str, total: int, uris: Mapping[str, str]) -> dict[str, Any]:
        return {part.range.name: work(part) for part in parts}

    monkeypatch.setattr(ingest_module, "run_parts", run_parts)
    monkeypatch.setattr(ingest_module, "ray_session", lambda cpus: nullcontext())
    monkeypatch.setattr(refine_module, "TAR_BYTES", 8_000)


def put_sources(folder: Location, local: Path) -> None:
    """Tars of image-mask samples, a tar of image-text pairs, a checkpoint."""
    for path in write_sa1b_tars([make_record(number) for number in range(SAMPLES)], local, per_tar=20, number=lambda index: index):
        storage.upload_file(path, folder / f"tars/{path.name}")
    with tarfile.open(local / "texts", "w") as archive:
        for drawn in (image_text(SceneConfig(size=64), 5, index, 0.0) for index in range(TEXTS)):
            for ending, data in (("jpg", drawn.image), ("txt", drawn.caption.encode())):
                info = tarfile.TarInfo(f"{drawn.key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    storage.upload_file(local / "texts", folder / "texts/a.tar")
    with checkpoint.opened("shapes") as model:
        storage.upload_folder(model, folder / "model", checkpoint.MANIFEST)


def chain(bucket: Location, name: str) -> list[bytes]:
    """Ingest, refine and match into a folder of the bucket; rows of the ingested set as two ranks read them in two epochs."""
    sources, output = bucket / "sources", bucket / name
    ingest(IngestConfig(source=f"{sources.uri}/tars", output=f"{output.uri}/shards", part_bytes=8_000, rows_per_group=4))
    refine_here(RefineConfig(source=f"{sources.uri}/texts", format="webdataset", output=f"{output.uri}/entities", rows_per_group=2))
    settings = ["regions={sizes: [64], templates: simple}", "pairing.points_per_side=3", "pairing.max_masks=4", "device=cpu", "threads=1"]
    paths = [f"entities={bucket.uri}/clear/entities", f"checkpoint={sources.uri}/model", f"output={output.uri}/pairs"]
    match(load(MatchConfig, None, [*paths, *settings]))
    rows = tuple(group.rows for group in ShardSet(f"{output.uri}/shards").groups)
    planned = [PlannedRows(f"{output.uri}/shards", rows, 0, batch_size=12, window_groups=4, rank=rank, world_size=2, parts=1) for rank in (0, 1)]
    return [cell for part in planned for table in part.read(0, 2 * SAMPLES // 12) for cell in table.column("image").to_pylist()]


def objects(folder: Location) -> dict[str, bytes]:
    return {item.uri.removeprefix(folder.uri): storage.read_bytes(item) for item in storage.list_files(folder, recursive=True)}


@pytest.mark.usefixtures("here", "store_bucket")
@pytest.mark.parametrize(
    "weather",
    [pytest.param(Weather(share=0.05, seed=1), marks=pytest.mark.fault), pytest.param(Weather(share=0.3, delay=0.1), marks=pytest.mark.slow)],
    ids=["five", "thirty"],
)
def test_what_comes_out_is_what_a_good_network_gives(
    weather: Weather, object_store: ObjectStore, fault_proxy: FaultProxy, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bucket = Location.of(
        make_bucket(object_store, request.node.callspec.id)
    )  # the faults are drawn by what is asked for, so by the bucket's name too
    put_sources(bucket / "sources", tmp_path)
    rows = chain(bucket, "clear")
    assert len(rows) == 2 * SAMPLES and len(set(rows)) == SAMPLES
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
        fault_proxy.set(weather)
        assert chain(bucket, "faulty") == rows
    clear, faulty = objects(bucket / "clear"), objects(bucket / "faulty")
    assert clear.keys() == faulty.keys() and len(clear) > 60
    assert [file for file in clear if clear[file] != faulty[file]] == []
    counts = fault_proxy.counts()
    assert counts["requests"] > 300
    assert set(FAULTS) <= counts.keys()
    assert 0.5 * weather.share < sum(counts[fault] for fault in FAULTS) / counts["requests"] < 1.5 * weather.share


@pytest.mark.usefixtures("here")
def test_the_store_may_be_away_between_two_requests(
    store_bucket: str, fault_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes in the middle of a tar and of a row group, and comes back at the third try."""
    for path in write_sa1b_tars([make_record(number) for number in range(20)], tmp_path, per_tar=20, number=lambda index: index):
        storage.upload_file(path, Location.of(store_bucket) / f"tars/{path.name}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
    tries: list[int] = []

    def pause(attempt: int) -> None:
        tries.append(attempt)
        if attempt == 1:
            fault_proxy.set(Weather())

    monkeypatch.setattr(storage, "pause", pause)
    monkeypatch.setattr("uniovseg.data.tar.pause", pause)
    monkeypatch.setattr("uniovseg.data.tar.BUFFER", 4096)
    config = IngestConfig(source=f"{store_bucket}/tars", output=f"{store_bucket}/out", rows_per_group=4)
    (part,) = ingest_module.plan_parts(config)
    keys = []
    for number, (_, record) in enumerate(part.samples(decode=True)):
        keys.append(record.key)
        if number == 7:
            fault_proxy.set(Weather(away=True))
    assert keys == [f"sa_{number}" for number in range(20)] and tries[:2] == [0, 1]
    ingest(config)
    shards = ShardSet(f"{store_bucket}/out")
    expected = [shards.read_group(index) for index in range(5)]
    tries.clear()
    fault_proxy.set(Weather(away=True))
    assert [shards.read_group(index) for index in range(5)] == expected and tries == [0, 1]


def test_a_filesystem_is_built_anew_by_each_task_and_keeps_its_retries(
    store_bucket: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
    item = Location.of(store_bucket) / "a"
    storage.write_bytes(item, b"data")
    filesystem, _ = item.filesystem()
    assert isinstance(filesystem, pafs.S3FileSystem)
    fault_proxy.set(Weather(share=0.3, faults=("503",)))
    for _ in range(40):
        assert storage.read_bytes(item) == b"data"
    assert fault_proxy.counts()["503"] > 5


@pytest.mark.usefixtures("store_bucket")
def test_a_row_group_is_one_request(store_bucket: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a file takes one more, for the footer."""
    location = Location.of(store_bucket)
    part = PartRange(name="a", source="a.tar", begin=0, end=9)
    write_manifest(location, [write_part(part, list(enumerate(make_record(number) for number in range(9))), location, 3)])
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
    fault_proxy.set(Weather())
    shards, requests = ShardSet(location), []
    for group in range(3):
        before = fault_proxy.counts()["requests"]
        assert shards.read_group(group).column("key").to_pylist() == [f"sa_{number}" for number in range(3 * group, 3 * group + 3)]
        requests.append(fault_proxy.counts()["requests"] - before)
    assert requests == [2, 1, 1]
    assert shards._files and not copy.copy(shards)._files
