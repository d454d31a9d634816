"""Local and S3 bytes behind one kind of address.

A `Location` is a picklable recipe: the URI and nothing else. Each process builds its own filesystem from it, because a pickled S3 filesystem loses
its retry strategy. Credentials come from the usual AWS chain and are never part of a location; endpoint and region come from AWS_ENDPOINT_URL and
AWS_REGION.
"""

import errno
import functools
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from uniovseg.errors import MissingFileError, StorageError

ATTEMPTS = 6
"""How often a read or write is tried before its error is raised."""

PERMANENT_CODES = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS)
PERMANENT_WORDS = ("is a directory", "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
"""What the operating system and S3 say when trying again cannot help."""

T = TypeVar("T")


@functools.lru_cache(maxsize=8)
def _s3(endpoint: str | None, region: str | None) -> pafs.S3FileSystem:
    options = {}
    if endpoint:
        parts = urlsplit(endpoint)
        options = {"endpoint_override": parts.netloc or parts.path, "scheme": parts.scheme or "https"}
    if region:
        options["region"] = region
    return pafs.S3FileSystem(
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=10),
        connect_timeout=10,
        request_timeout=60,
        allow_bucket_creation=False,
        **options,
    )


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder: a local path, ``file://`` or ``s3://bucket/key`` URI, or any other URI that pyarrow opens."""

    uri: str

    @classmethod
    def of(cls, uri: "str | Path | Location") -> "Location":
        """The location of a URI; local paths become absolute.

        Raises:
            StorageError: the URI holds credentials or options, which would end up in logs and manifests.
        """
        if isinstance(uri, Location):
            return uri
        text = str(uri)
        scheme, _, rest = text.partition("://")
        if scheme == "s3" and ("@" in rest.partition("/")[0] or "?" in rest):
            raise StorageError(
                "an s3 URI holds more than bucket and key", allowed="s3://bucket/key",
                fix="credentials, AWS_ENDPOINT_URL and AWS_REGION belong into the environment of every node",
            )  # fmt: skip
        if "://" not in text:
            return cls(str(Path(text).absolute()))
        return cls(text.removeprefix("file://").rstrip("/") if text.startswith("file://") else text.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri}/{name}")

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem, built in this process, and the path on it. Raises StorageError for a URI that pyarrow does not know."""
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        if self.uri.startswith("s3://"):
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            return _s3(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"), region), self.uri.removeprefix("s3://")
        try:
            filesystem, path = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, ValueError) as error:
            raise StorageError("the URI cannot be opened", seen=self.uri, allowed="a local path, s3://bucket/key, gs://, hdfs://") from error
        return filesystem, path


def with_retries(call: Callable[[], T], what: str) -> T:
    """Call until it succeeds, at most `ATTEMPTS` times, with growing random pauses. A missing file is not tried again.

    Raises:
        StorageError: the last error, with what was being done; MissingFileError when there is no such file.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except FileNotFoundError as error:
            raise MissingFileError(f"{what}: not found") from error
        except OSError as error:
            hopeless = error.errno in PERMANENT_CODES or any(word in str(error) for word in PERMANENT_WORDS)
            if hopeless or attempt == ATTEMPTS - 1:
                raise StorageError(what, seen=" ".join(str(error).split())[:300]) from error
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Sleep before try number ``attempt + 1``: random up to 0.2, 0.4, ... seconds, at most 10."""
    time.sleep(random.random() * min(10.0, 0.2 * 2**attempt))


def read_bytes(location: Location) -> bytes:
    """The whole file."""

    def read() -> bytes:
        filesystem, path = location.filesystem()
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    return with_retries(read, f"reading {location.uri}")


def write_bytes(location: Location, data: bytes) -> None:
    """Write a file whole or not at all: locally through a temporary name, on object stores in one upload."""

    def write() -> None:
        filesystem, path = location.filesystem()
        if location.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                Path(temporary).write_bytes(data)
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        else:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)

    with_retries(write, f"writing {location.uri}")


def exists(location: Location) -> bool:
    """Whether there is a file or folder."""
    filesystem, path = location.filesystem()
    found = with_retries(lambda: filesystem.get_file_info(path), f"looking for {location.uri}")
    return bool(found.type != pafs.FileType.NotFound)


def size(location: Location) -> int:
    """Bytes of a file. Raises StorageError when there is none."""
    filesystem, path = location.filesystem()
    found = with_retries(lambda: filesystem.get_file_info(path), f"looking for {location.uri}")
    if found.type != pafs.FileType.File:
        raise MissingFileError("no such file", seen=location.uri)
    return int(found.size)


def list_files(folder: Location, ending: str | tuple[str, ...] = "", *, recursive: bool = False) -> list[Location]:
    """All files directly in a folder (or at any depth below it) whose names end so, by path; empty for a folder that does not exist."""
    filesystem, path = folder.filesystem()
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    found = with_retries(lambda: filesystem.get_file_info(selector), f"listing {folder.uri}")
    files = sorted(info.path for info in found if info.type == pafs.FileType.File and info.base_name.endswith(ending))
    return [folder / file.removeprefix(path).lstrip("/") for file in files]


@contextmanager
def local_copy(uri: "str | Path | Location") -> Iterator[Path]:
    """A folder's files as a local folder: itself when it is local, else a temporary copy of the files directly in it."""
    location = Location.of(uri)
    if location.is_local:
        yield Path(location.uri)
        return
    folder = Path(tempfile.mkdtemp())
    try:
        for item in list_files(location):
            (folder / item.name).write_bytes(read_bytes(item))
        yield folder
    finally:
        shutil.rmtree(folder)


def upload_folder(folder: Path, target: Location, last: str) -> None:
    """Copy the files of a local folder to a location, the file named `last` after all others."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
        write_bytes(target / path.name, path.read_bytes())
