import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from uniovseg import storage
from uniovseg.errors import MissingFileError, StorageError
from uniovseg.storage import Location


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

    def dies(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "disk full")

    monkeypatch.setattr(Path, "write_bytes", dies)
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


@pytest.mark.parametrize("uri", ["s3://AKIA:SECRET@bucket/x", "s3://bucket/x?endpoint_override=SECRET"])
def test_credentials_and_options_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        Location.of(uri)
    assert "SECRET" not in str(caught.value)


def test_folders_go_up_with_one_file_last_and_come_down(folder: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "manifest.json", "z"):
        (source / name).write_text(name)
    order: list[str] = []
    write = storage.write_bytes

    def noted(item: Location, data: bytes) -> None:
        order.append(item.name)
        write(item, data)

    monkeypatch.setattr(storage, "write_bytes", noted)
    storage.upload_folder(source, folder, last="manifest.json")
    assert order == ["a", "z", "manifest.json"]
    with storage.local_copy(folder.uri) as copy:
        assert {path.name: path.read_text() for path in copy.iterdir()} == {name: name for name in order}
    assert copy.exists() == folder.is_local
