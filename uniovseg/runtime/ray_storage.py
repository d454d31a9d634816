"""The store as Ray itself sees it, with our retries: Ray writes what it knows of a run's checkpoints there, and ends the run when that fails once.

A filesystem of pyarrow loses its own retries when it is sent to another process, so what is sent is a recipe, as `uniovseg.storage.Location` is.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from uniovseg import storage
from uniovseg.errors import MissingFileError
from uniovseg.storage import Location

T = TypeVar("T")


def ray_filesystem(location: Location) -> tuple[pafs.FileSystem, str]:
    """The filesystem to give to Ray, and the location's path on it."""
    filesystem, path = location.filesystem()
    return (pafs.PyFileSystem(_RetriedS3()) if location.uri.startswith("s3://") else filesystem), path


class _RetriedS3(pafs.FileSystemHandler):  # type: ignore[misc]
    """S3, each call tried as `storage.with_retries` does. Files are read and written as a whole: those that Ray writes are small."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RetriedS3)

    def __hash__(self) -> int:
        return hash(_RetriedS3)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        return _retried("looking for files", lambda s3: s3.get_file_info(list(paths)))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return _retried(f"listing {selector.base_dir}", lambda s3: s3.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        _retried(f"making {path}", lambda s3: s3.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        _retried(f"deleting {path}", lambda s3: s3.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        _retried(f"emptying {path}", lambda s3: s3.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        _retried(f"deleting {path}", lambda s3: s3.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        _retried(f"moving {src}", lambda s3: s3.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        _retried(f"copying {src}", lambda s3: s3.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        try:
            return pa.BufferReader(storage.read_bytes(Location(f"s3://{path}")))
        except MissingFileError as error:
            raise FileNotFoundError(path) from error  # what a filesystem of pyarrow says

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return pa.PythonFile(_WrittenWhole(Location(f"s3://{path}")), mode="w")

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        raise NotImplementedError


class _WrittenWhole(io.BytesIO):
    """Keeps what is written, and writes it to a location when it is closed."""

    def __init__(self, location: Location) -> None:
        super().__init__()
        self.location = location

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            storage.write_bytes(self.location, data)


def _retried(what: str, call: Callable[[pafs.FileSystem], T]) -> T:
    filesystem, _ = Location("s3://").filesystem()
    return storage.with_retries(functools.partial(call, filesystem), what)
