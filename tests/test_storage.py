import http.server
import io
import pickle
import random
import shutil
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest
from botocore.exceptions import EndpointConnectionError
from hypothesis import given
from hypothesis import strategies as st

from uniovseg import storage
from uniovseg.benchmarks.fault_proxy import FAULTS, FaultProxy, Weather
from uniovseg.benchmarks.object_store import ObjectStore
from uniovseg.errors import ConfigError, MissingFileError, StorageError
from uniovseg.storage import Location, S3Settings, local_folder


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    monkeypatch.setattr(storage, "pause", made.append)
    return made


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location.of(tmp_path / "new") if request.param == "local" else Location.of(request.getfixturevalue("s3_bucket") + "/new")


def test_bytes_come_back(folder: Location, pauses: list[int]) -> None:
    data = bytes(range(256)) * 50_000
    item = folder / "deep/ä b.bin"
    assert not storage.exists(item) and storage.list_files(folder) == []
    storage.write_bytes(item, b"old, and longer than nothing")
    storage.write_bytes(item, data)
    assert storage.exists(item) and storage.size(item) == len(data) and storage.read_bytes(item) == data
    assert pickle.loads(pickle.dumps(item)).filesystem()[0].get_file_info(item.filesystem()[1]).size == len(data)  # noqa: S301
    assert pauses == []


def test_listing_is_by_name_ending_and_folder(folder: Location) -> None:
    for name in ("b.json", "a.json", "c.txt", "sub/d.json"):
        storage.write_bytes(folder / name, b"x")
    assert [item.name for item in storage.list_files(folder, ".json")] == ["a.json", "b.json"]
    assert storage.list_files(folder, ".txt") == [folder / "c.txt"]
    assert storage.list_files(folder, (".txt", "d.json"), recursive=True) == [folder / "c.txt", folder / "sub/d.json"]


def test_a_missing_file_is_told_at_once(folder: Location, pauses: list[int]) -> None:
    for call in (storage.read_bytes, storage.size):
        with pytest.raises(MissingFileError, match=r"nothing\.bin"):
            call(folder / "nothing.bin")
    assert pauses == []


def test_transient_errors_are_tried_again_and_lasting_ones_told(pauses: list[int]) -> None:
    def failing(times: int) -> Callable[[], str]:
        errors = iter([OSError("AWS Error SLOW_DOWN")] * times)

        def call() -> str:
            for error in errors:
                raise error
            return "done"

        return call

    assert storage.with_retries(failing(storage.ATTEMPTS - 1), "x") == "done"
    assert pauses == list(range(storage.ATTEMPTS - 1))
    with pytest.raises(StorageError, match=r"reading y.*SLOW_DOWN"):
        storage.with_retries(failing(storage.ATTEMPTS), "reading y")


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(28, "disk full"), OSError("AWS Error ACCESS_DENIED during GetObject")])
def test_what_cannot_get_better_is_not_tried_again(error: OSError, pauses: list[int]) -> None:
    def call() -> None:
        raise error

    with pytest.raises(StorageError):
        storage.with_retries(call, "x")
    assert pauses == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Location.of(tmp_path / "a.bin")
    storage.write_bytes(item, b"old")

    def dies(source: IO[bytes], target: IO[bytes], length: int) -> None:
        target.write(source.read(1))
        raise OSError(28, "disk full")

    monkeypatch.setattr(shutil, "copyfileobj", dies)
    with pytest.raises(StorageError, match="disk full"):
        storage.write_bytes(item, b"new")
    assert storage.read_bytes(item) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.of("x/y.tar") == Location.of(tmp_path / "x" / "y.tar") == Location.of(f"file://{tmp_path}/x/y.tar")
    assert Location.of("s3://bucket/a/") / "b" == Location("s3://bucket/a/b")
    assert Location.of("s3://bucket/a/").name == "a"
    with pytest.raises(StorageError, match="cannot be opened"):
        Location.of("ftp://host/x").filesystem()


def test_an_output_of_this_machine_keeps_its_path_and_another_is_refused() -> None:
    assert [str(local_folder(uri)) for uri in ("runs/a", "/data/a", "file:///data/a")] == ["runs/a", "/data/a", "/data/a"]
    with pytest.raises(ConfigError, match="seen: s3://bucket/a; allowed: a local path"):
        local_folder("s3://bucket/a")


@pytest.mark.parametrize(
    "uri",
    ["s3://AKIA:SECRET@bucket/x", "s3://bucket/x?endpoint_override=SECRET", "gs://bucket/x?endpoint_override=SECRET", "hdfs://me:SECRET@host/x"],
)
def test_credentials_and_options_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        Location.of(uri)
    assert "SECRET" not in str(caught.value)
    assert Location.of("hdfs://me@host/x").uri == "hdfs://me@host/x"


def test_folders_go_up_with_one_file_last_and_come_down(folder: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "manifest.json", "z"):
        (source / name).write_text(name)
    order: list[str] = []
    upload = storage.upload_file

    def noted(source: Path, target: Location) -> None:
        order.append(target.name)
        upload(source, target)

    monkeypatch.setattr(storage, "upload_file", noted)
    storage.upload_folder(source, folder, last="manifest.json")
    assert order == ["a", "z", "manifest.json"]
    with storage.local_copy(folder.uri) as copy:
        assert {path.name: path.read_text() for path in copy.iterdir()} == {name: name for name in order}
    assert copy.exists() == folder.is_local


class Shortened(io.BytesIO):
    """A file whose reads fail, or give too little, as `faults` says, in turn."""

    def __init__(self, data: bytes, faults: Iterator[str]) -> None:
        super().__init__(data)
        self.faults = faults

    def read(self, count: int | None = -1, /) -> bytes:
        fault = next(self.faults, "")
        if fault == "error":
            raise OSError("AWS Error NETWORK_CONNECTION")
        data = super().read(count)
        return data[: len(data) // 2] if fault == "short" else data


@given(size=st.integers(0, 100), chunk=st.integers(1, 40), faults=st.lists(st.sampled_from(["", "error", "short"]), max_size=storage.ATTEMPTS - 1))
def test_a_large_read_goes_on_where_it_broke_off(size: int, chunk: int, faults: list[str]) -> None:
    data = random.Random(size).randbytes(size)
    file = pa.PythonFile(Shortened(data, iter(faults)), mode="r")
    filesystem = type("Filesystem", (), {"open_input_file": lambda self, path: file})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "pause", lambda _: None)
        patch.setattr(storage, "CHUNK", chunk)
        patch.setattr(Location, "filesystem", lambda self: (filesystem, self.uri))
        assert storage.read_bytes(Location("s3://bucket/x")) == data


def test_a_store_may_be_away_for_twenty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(random, "random", lambda: 1.0)  # the shortest pauses

    def call() -> None:
        raise OSError("connection refused")

    with pytest.raises(StorageError):
        storage.with_retries(call, "x")
    assert 20 < sum(slept) < 60 and slept == sorted(slept)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_S3_ADDRESSING_STYLE"):
        monkeypatch.delenv(name, raising=False)
    assert S3Settings.of_environment() == S3Settings(None, None, "virtual")
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "path")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        S3Settings.of_environment()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store:9000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert S3Settings.of_environment() == S3Settings("https://store:9000", "eu-west-1", "path")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3:9000")
    monkeypatch.delenv("AWS_S3_ADDRESSING_STYLE")
    assert S3Settings.of_environment() == S3Settings("https://s3:9000", "eu-west-1", "path")
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "subdomain")
    with pytest.raises(StorageError, match="subdomain.*path, virtual"):
        S3Settings.of_environment()


@contextmanager
def recording_server() -> Iterator[tuple[int, list[str]]]:
    """A server that answers every request with 403, and the host and path of each."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.do_HEAD()

        def do_HEAD(self) -> None:
            asked.append(self.headers["Host"].partition(":")[0] + self.path)
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("style", "wanted"), [("path", "localhost/bucket/x"), ("virtual", "bucket.localhost/x")])
def test_both_clients_name_buckets_as_configured(style: str, wanted: str, monkeypatch: pytest.MonkeyPatch, pauses: list[int]) -> None:
    resolve = socket.getaddrinfo  # by Python, which knows no hosts below localhost
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve(host.removeprefix("bucket."), *rest, **more))
    with recording_server() as (port, asked):
        for name, value in {
            "ENDPOINT_URL": f"http://localhost:{port}",
            "S3_ADDRESSING_STYLE": style,
            "ACCESS_KEY_ID": "k",
            "SECRET_ACCESS_KEY": "s",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        for call in (storage.read_bytes, lambda item: storage.write_bytes(item, b"data")):
            with pytest.raises(StorageError):
                call(Location("s3://bucket/x"))
    assert set(asked) == {wanted} and len(asked) >= 2 and pauses == []


def test_a_multipart_upload_that_fails_leaves_nothing(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[int]) -> None:
    monkeypatch.setattr(storage, "CHUNK", 5 * 1024**2)
    (tmp_path / "a").write_bytes(bytes(11_000_000))
    target, numbers = Location.of(s3_bucket) / "a", []
    client = storage._s3_client(S3Settings.of_environment())

    def fails(params: dict[str, Any], **_: Any) -> None:
        numbers.append(params["PartNumber"])
        if params["PartNumber"] == 3:
            raise EndpointConnectionError(endpoint_url="here")

    client.meta.events.register("provide-client-params.s3.UploadPart", fails)
    try:
        with pytest.raises(StorageError, match="here"):
            storage.upload_file(tmp_path / "a", target)
    finally:
        client.meta.events.unregister("provide-client-params.s3.UploadPart", fails)
    assert numbers.count(3) == len(pauses) + 1 == storage.ATTEMPTS
    assert not storage.exists(target)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket.removeprefix("s3://"))


@pytest.mark.slow
def test_a_large_file_goes_up_and_down_in_chunks_through_a_faulty_network(
    store_bucket: str, fault_proxy: FaultProxy, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
    monkeypatch.setattr(storage, "CHUNK", 5 * 1024**2)  # the least that S3 allows for a part
    source, copy, target = tmp_path / "a", tmp_path / "b", Location.of(store_bucket) / "large"
    data = random.Random(0).randbytes(60_000_000)
    source.write_bytes(data)
    fault_proxy.set(Weather(share=0.3, delay=0.1))
    tracemalloc.start()
    storage.upload_file(source, target)
    storage.download_file(target, copy)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert copy.read_bytes() == data and storage.size(target) == len(data)
    assert most < 30_000_000  # a few chunks; never the whole
    counts = fault_proxy.counts()
    assert counts["requests"] > 30 and sum(counts.get(fault, 0) for fault in FAULTS) > 4
    client = storage._s3_client(S3Settings(object_store.endpoint, "us-east-1", "path"))
    assert "Uploads" not in client.list_multipart_uploads(Bucket=store_bucket.removeprefix("s3://"))
    assert client.head_object(Bucket=store_bucket.removeprefix("s3://"), Key="large")["ETag"].endswith('-12"')  # parts of a multipart upload


@pytest.mark.cluster
def test_a_real_store_refuses_a_wrong_key_and_an_unknown_bucket_at_once(
    store_bucket: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, pauses: list[int]
) -> None:
    item = Location.of(store_bucket) / "a"
    storage.write_bytes(item, b"data")
    assert storage.read_bytes(item) == b"data"
    with pytest.raises(StorageError):
        storage.write_bytes(Location("s3://no-such-bucket/a"), b"data")
    storage._s3.cache_clear()
    storage._s3_client.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    for call in (storage.read_bytes, lambda item: storage.write_bytes(item, b"data")):
        with pytest.raises(StorageError) as caught:
            call(item)
        assert "another" not in str(caught.value)
    assert pauses == []
    storage._s3.cache_clear()
    storage._s3_client.cache_clear()


@pytest.mark.cluster
def test_a_store_that_comes_back_is_waited_for(store_bucket: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.endpoint)
    item = Location.of(store_bucket) / "a"
    tries: list[int] = []

    def pause(attempt: int) -> None:
        tries.append(attempt)
        if len(tries) == 2:
            fault_proxy.set(Weather())

    monkeypatch.setattr(storage, "pause", pause)
    for call in (lambda: storage.write_bytes(item, b"data"), lambda: storage.read_bytes(item)):
        tries.clear()
        fault_proxy.set(Weather(away=True))
        call()
        assert len(tries) >= 2
