"""Ingest as a whole: parts, faults, a killed job, S3. What must come out is known, because the tests wrote what goes in."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from tests.data.sa1b_samples import DAMAGES, make_files, make_record
from uniovseg import storage
from uniovseg.data import tar
from uniovseg.data.coco import write_sa1b_tars
from uniovseg.data.shards import MANIFEST, ShardSet
from uniovseg.errors import ConfigError, DataError, StorageError
from uniovseg.records import Rejected
from uniovseg.runtime.ingest import IngestConfig, ingest, plan_parts
from uniovseg.runtime.shards import write_part
from uniovseg.storage import Location

ROOT = Path(__file__).parents[2]


def write_damaged_tar(path: Path, count: int, damaged: int, seed: int = 0) -> dict[str, str | None]:
    """A tar in which `damaged` of `count` samples are broken, in all ways in turn; key to the reason, None for a good one."""
    rng = random.Random(seed)
    bad = dict(zip(rng.sample(range(count), damaged), list(DAMAGES) * damaged, strict=False))
    reasons: dict[str, str | None] = {}
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            files = make_files(number)
            reasons[f"sa_{number}"] = None
            if number in bad:
                reasons[f"sa_{number}"], damage = DAMAGES[bad[number]]
                files = damage(files)
            for ending, data in files.items():
                info = tarfile.TarInfo(f"./sa_{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return reasons


def assert_holds(output: str | Path, reasons: dict[str, str | None]) -> None:
    """None lost, none twice, every reject with its reason and the offset at which it stands."""
    shards = ShardSet(output)
    good = [key for key, reason in reasons.items() if reason is None]
    records = list(shards.records())
    assert Counter(record.key for record in records) == Counter(good)
    assert [record.key for record in records] == good  # in the tar's order
    for record in records[:: max(1, len(records) // 50)]:
        assert (record.image, record.counts) == ((made := make_record(int(record.key[3:]))).image, made.counts)
    rejects = shards.rejects().to_pylist()
    assert Counter((row["key"], row["reason"]) for row in rejects) == Counter((key, reason) for key, reason in reasons.items() if reason)
    assert shards.manifest.rejects == dict(sorted(Counter(row["reason"] for row in rejects).items()))
    for row in rejects:
        header = Path(row["source"]).read_bytes()[row["offset"] : row["offset"] + 512]
        assert header.startswith(f"./{row['key']}.".encode())


Job = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def job(ray_cluster: None) -> Iterator[Job]:
    """Starts `jobs/ingest.py` on the tests' cluster, as a submitted job; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, env_vars: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "jobs/ingest.py"), *arguments]
        submitted = {
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": env_vars or {}}}),
        }
        started.append(subprocess.Popen(command, env=os.environ | submitted, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.cluster
@pytest.mark.fault
def test_200_damaged_of_1000_also_when_killed_half_way(job: Job, tmp_path: Path) -> None:
    reasons = write_damaged_tar(tmp_path / "sa_000000.tar", 1000, 200)
    assert set(reasons.values()) - {None} == {reason for reason, _ in DAMAGES.values()}
    output = tmp_path / "out"
    arguments = [f"source={tmp_path}", f"output={output}", "part_bytes=100000", "rows_per_group=16"]
    process = job(*arguments)
    deadline = time.monotonic() + 300  # only so that a fault ends
    while len(list((output / "commits").glob("*.json"))) < 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / MANIFEST).exists() and not (output / "report.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in list((output / "commits").glob("*.json"))[:4]}

    printed = finish(job(*arguments))
    assert_holds(output, reasons)
    report = json.loads((output / "report.json").read_text())
    assert (report["samples"], report["rejected"]) == (800, 200) and report["rejects"] == ShardSet(output).manifest.rejects
    assert 4 <= report["parts_already_done"] < report["parts"]
    assert "800 samples" in printed and "200 rejected" in printed
    assert kept == {name: (output / "commits" / name).stat().st_mtime_ns for name in kept}  # committed parts were not read again

    again = ingest(IngestConfig(source=str(tmp_path), output=str(output), part_bytes=100_000, rows_per_group=16))  # needs no Ray
    assert again["parts_already_done"] == again["parts"] == report["parts"]
    assert_holds(output, reasons)


@pytest.mark.cluster
def test_from_s3_to_s3(job: Job, s3_bucket: str, tmp_path: Path) -> None:
    paths = write_sa1b_tars([make_record(number) for number in range(30)], tmp_path, per_tar=20, number=lambda index: index)
    for path in paths:
        storage.write_bytes(Location.of(s3_bucket) / f"tars/{path.name}", path.read_bytes())
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}  # workers do not see this process's environment
    finish(job(f"source={s3_bucket}/tars", f"output={s3_bucket}/out", "part_bytes=20000", env_vars=aws))
    shards = ShardSet(f"{s3_bucket}/out")
    assert list(shards.manifest.sources) == [f"{s3_bucket}/tars/{path.name}" for path in paths]
    assert [record.key for record in shards.records()] == [f"sa_{number}" for number in range(30)]
    assert json.loads(storage.read_bytes(Location.of(f"{s3_bucket}/out/report.json")))["samples"] == 30


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_an_output_that_cannot_be_written_is_one_line_and_the_job_goes_on_later(tmp_path: Path) -> None:
    write_sa1b_tars([make_record(number) for number in range(4)], tmp_path, per_tar=2, number=lambda index: index)
    config = IngestConfig(source=str(tmp_path), output=str(tmp_path / "out"))
    blocker = tmp_path / "out/shards"
    blocker.parent.mkdir()
    blocker.write_text("a file where a folder must be")
    with pytest.raises(StorageError, match="run the same command again"):
        ingest(config)
    blocker.unlink()
    assert ingest(config)["samples"] == 4


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_coco_sets_become_shard_sets(tmp_path: Path) -> None:
    real = os.environ.get("UNIOVSEG_REAL_DATA")
    if real is None:
        pytest.skip("UNIOVSEG_REAL_DATA is not set")
    instances = f"{real}/coco_mini/annotations/instances_val2017.json"
    report = ingest(
        IngestConfig(source=instances, images=f"{real}/coco_mini/val2017", output=str(tmp_path / "a"), format="coco_instances", verify="decode")
    )
    parsed = json.loads(Path(instances).read_text())
    crowds = sum(note["iscrowd"] for note in parsed["annotations"])
    assert (report["samples"], report["rejected"]) == (len(parsed["images"]), 0)
    assert report["masks"] == len(parsed["annotations"]) - crowds
    assert report["parts"] == -(-len(parsed["images"]) // 64)
    with pytest.raises(ConfigError, match="other settings; seen: images: "):
        ingest(IngestConfig(source=instances, images=real, output=str(tmp_path / "a"), format="coco_instances", verify="decode"))
    panoptic = f"{real}/panopticapi_sample/sample_data/panoptic_examples.json"
    images = f"{real}/panopticapi_sample/sample_data/input_images"
    report = ingest(IngestConfig(source=panoptic, images=images, output=str(tmp_path / "b"), format="coco_panoptic"))
    segments = [segment for note in json.loads(Path(panoptic).read_text())["annotations"] for segment in note["segments_info"]]
    assert (report["samples"], report["masks"]) == (2, sum(not segment["iscrowd"] for segment in segments))


class Flaky(io.BytesIO):
    """A file whose reads fail after a number of bytes."""

    def __init__(self, data: bytes, budget: int) -> None:
        super().__init__(data)
        self.budget = budget

    def read(self, count: int | None = -1, /) -> bytes:
        data = super().read(count)
        self.budget -= len(data)
        if self.budget < 0:
            raise OSError("AWS Error SLOW_DOWN")
        return data


def test_read_errors_inside_a_part_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "pause", lambda _: None)
    monkeypatch.setattr("uniovseg.data.tar.BUFFER", 4096)
    reasons = write_damaged_tar(tmp_path / "a.tar", 60, 20)
    data = (tmp_path / "a.tar").read_bytes()
    rng = random.Random(0)
    opened = 0

    class FlakyFilesystem:
        def open_input_file(self, path: str) -> Any:
            nonlocal opened
            opened += 1
            return pa.PythonFile(Flaky(data, rng.randrange(8_000, 40_000)), mode="r")

    parts = plan_parts(IngestConfig(source=str(tmp_path / "a.tar"), output="unused", part_bytes=30_000))
    assert len(parts) > 2
    monkeypatch.setattr(Location, "filesystem", lambda self: (FlakyFilesystem(), self.uri))
    found = [sample for part in parts for _, sample in part.samples(decode=False)]
    assert opened > 2 * len(parts)
    assert [(item.key, item.reason if isinstance(item, Rejected) else None) for item in found] == list(reasons.items())


def test_an_error_that_stays_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "pause", lambda _: None)
    write_damaged_tar(tmp_path / "a.tar", 2, 0)
    (part,) = plan_parts(IngestConfig(source=str(tmp_path / "a.tar"), output="unused"))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(StorageError, match=r"reading .*a\.tar"):
        list(part.samples(decode=False))


def test_damage_to_the_archive_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_damaged_tar(path, 10, 0)
    path.write_bytes(path.read_bytes()[:-12_000])
    parts = plan_parts(IngestConfig(source=str(path), output="unused", part_bytes=4096))
    found = [sample for part in parts for _, sample in part.samples(decode=False)]
    good = [item.key for item in found if not isinstance(item, Rejected)]
    assert good == [f"sa_{number}" for number in range(len(good))] and 3 < len(good) < 10
    (bad,) = (item for item in found if isinstance(item, Rejected))
    assert (bad.key, bad.reason, bad.source) == (f"sa_{len(good)}", "damaged_tar", str(path))


def test_nothing_to_ingest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to ingest"):
        plan_parts(IngestConfig(source=str(tmp_path), output="unused"))
    with pytest.raises(StorageError, match="no such file"):
        plan_parts(IngestConfig(source=str(tmp_path / "no.tar"), output="unused"))


def test_an_output_of_another_cut_is_refused(tmp_path: Path) -> None:
    write_damaged_tar(tmp_path / "a.tar", 3, 0)
    config = IngestConfig(source=str(tmp_path / "a.tar"), output=str(tmp_path / "out"))
    (part,) = plan_parts(config)
    write_part(part.range, part.samples(decode=False), Location.of(config.output), 64)
    assert ingest(config)["samples"] == 3
    for change in ({"part_bytes": 2048}, {"source": str(tmp_path / "b.tar")}):
        write_damaged_tar(tmp_path / "b.tar", 3, 0)
        with pytest.raises(ConfigError, match="another source, or of another part_bytes"):
            ingest(config.model_copy(update=change))


def test_tars_of_one_name_have_parts_of_their_own(tmp_path: Path) -> None:
    names = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_damaged_tar(tmp_path / folder / "x.tar", 3, 0)
        names |= {part.range.name for part in plan_parts(IngestConfig(source=str(tmp_path / folder), output="unused", part_bytes=2048))}
    assert len(names) == 2 * len(plan_parts(IngestConfig(source=str(tmp_path / "a"), output="unused", part_bytes=2048)))
