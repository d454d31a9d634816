"""Ingest as a submitted job, from the store to the store."""

import json
from pathlib import Path

import pytest

from tests.data.sa1b_samples import make_record
from tests.e2e.cluster import Cluster
from tests.object_store import SECRET
from uniovseg import storage
from uniovseg.data.coco import write_sa1b_tars
from uniovseg.data.shards import ShardSet
from uniovseg.storage import Location

pytestmark = pytest.mark.cluster


@pytest.mark.usefixtures("store_environment")
def test_a_submitted_ingest_leaves_all_samples_and_no_secret(cluster: Cluster, tmp_path: Path) -> None:
    records = [make_record(number) for number in range(30)]
    for path in write_sa1b_tars(records, tmp_path, per_tar=10, number=lambda index: index):
        storage.upload_file(path, Location.of(cluster.bucket) / f"tars/{path.name}")
    printed = cluster.submit("jobs/ingest.py", f"source={cluster.bucket}/tars", f"output={cluster.bucket}/shards", "part_bytes=10000")
    shards = ShardSet(f"{cluster.bucket}/shards")
    assert [(record.key, record.image) for record in shards.records()] == [(record.key, record.image) for record in records]
    report = json.loads(storage.read_bytes(Location.of(cluster.bucket) / "shards/report.json"))
    assert report["samples"] == 30 and report["parts"] > 4
    written = [storage.read_bytes(item) for item in storage.list_files(Location.of(cluster.bucket), recursive=True)]
    logs = [path.read_bytes() for path in cluster.logs.glob("*.log")]
    ray_logs = [path.read_bytes() for folder in cluster.ray_folders for path in folder.rglob("logs/**/*") if path.is_file()]
    assert len(ray_logs) > 10
    assert [data[:200] for data in (printed.encode(), *written, *logs, *ray_logs) if SECRET.encode() in data] == []
