"""The filesystem that Ray gets, on a real store that goes away for a moment."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs as pafs
from ray.train._internal import storage as ray_files
from ray.tune import Tuner

from uniovseg import storage
from uniovseg.benchmarks.fault_proxy import FaultProxy, Weather
from uniovseg.errors import StorageError
from uniovseg.runtime.ray_storage import ray_filesystem
from uniovseg.storage import Location


@pytest.fixture
def tries(fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pauses between tries; at the second the store is back."""
    found: list[int] = []

    def pause(attempt: int) -> None:
        found.append(attempt)
        if attempt == 1:
            fault_proxy.set(Weather())

    monkeypatch.setattr(storage, "pause", pause)
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
    return found


@pytest.mark.fault
def test_every_call_waits_for_the_store(store_bucket: str, fault_proxy: FaultProxy, tries: list[int]) -> None:
    filesystem, path = pickle.loads(pickle.dumps(ray_filesystem(Location.of(store_bucket) / "run")))  # noqa: S301 - as Ray sends it
    assert path == f"{store_bucket.removeprefix('s3://')}/run"

    def write(data: bytes) -> None:
        with filesystem.open_output_stream(f"{path}/snapshot.json") as file:
            file.write(data)

    def read() -> bytes:
        with filesystem.open_input_stream(f"{path}/snapshot.json") as file:
            return bytes(file.read())

    calls: list[Callable[[], object]] = [
        lambda: write(b"first"),
        read,
        lambda: filesystem.get_file_info(f"{path}/snapshot.json").size,
        lambda: [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(path))],
        lambda: write(b"second"),
        read,
        lambda: filesystem.copy_file(f"{path}/snapshot.json", f"{path}/copy"),
        lambda: filesystem.delete_file(f"{path}/copy"),
        lambda: filesystem.delete_dir(path),
        lambda: filesystem.get_file_info(f"{path}/snapshot.json").type,
    ]
    answers = []
    for call in calls:
        fault_proxy.set(Weather(away=True))
        answers.append(call())
    assert answers == [None, b"first", 5, ["snapshot.json"], None, b"second", None, None, None, pafs.FileType.NotFound]
    assert tries.count(1) == len(calls)


def test_a_store_that_stays_away_is_an_error(store_bucket: str, fault_proxy: FaultProxy, tries: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    filesystem, path = ray_filesystem(Location.of(store_bucket) / "a")
    fault_proxy.set(Weather(away=True))
    with pytest.raises(StorageError, match="looking for files"):
        filesystem.get_file_info(path)
    with pytest.raises(StorageError, match=f"writing s3://{path}"), filesystem.open_output_stream(path) as file:
        file.write(b"data")


def test_what_ray_sends_and_looks_for_is_there(store_bucket: str, fault_proxy: FaultProxy, tries: list[int], tmp_path: Path) -> None:
    """Ray Tune copies folders, and asks whether there is a sweep to go on with."""
    filesystem, path = ray_filesystem(Location.of(store_bucket) / "sweep/tune")
    sent, found = tmp_path / "sent", tmp_path / "found"
    (sent / "trial").mkdir(parents=True)
    (sent / "trial/result.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file(f"{path}/tuner.pkl")
    assert not Tuner.can_restore(path, storage_filesystem=filesystem)
    (sent / "tuner.pkl").write_bytes(b"state")
    fault_proxy.set(Weather(away=True))
    ray_files._upload_to_fs_path(str(sent), filesystem, path)
    assert Tuner.can_restore(path, storage_filesystem=filesystem) and 1 in tries
    ray_files._download_from_fs_path(filesystem, path, str(found))
    assert {file.name: file.read_text() for file in found.rglob("*") if file.is_file()} == {"result.json": "{}", "tuner.pkl": "state"}


def test_a_local_folder_is_what_it_was(tmp_path: Path) -> None:
    filesystem, path = ray_filesystem(Location.of(tmp_path))
    assert isinstance(filesystem, pafs.LocalFileSystem) and path == str(tmp_path)
