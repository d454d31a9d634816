"""Local and S3 bytes behind one kind of address.

A `Location` is a picklable recipe: the URI and nothing else. Each process builds its own filesystem from it, because a pickled S3 filesystem loses
its retry strategy. Credentials come from the usual AWS chain and are never part of a location. Endpoint and region come from AWS_ENDPOINT_URL and
AWS_REGION, and how a bucket is named in requests from AWS_S3_ADDRESSING_STYLE: *path* (host/bucket) or *virtual* (bucket.host); where that is not
set, path style at an endpoint of one's own, virtual at AWS.

Reads go through pyarrow's filesystems. Writes to S3 go through boto3: an object is there whole or not at all, with one request for a small one, and a
large one that fails leaves no parts behind. Every call is tried again a bounded number of times; a large read goes on where it broke off.
"""

import errno
import functools
import io
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
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from uniovseg.errors import ConfigError, MissingFileError, StorageError

ATTEMPTS = 10
"""How often a call is tried before its error is raised; with the pauses between, a store may be away for 20 seconds."""

ATTEMPTS_INSIDE = 4
"""How often the S3 clients try each request by themselves, within one of our attempts."""

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""How long the S3 clients wait for a connection, and for the next byte."""

CHUNK = 16 * 1024**2
"""Bytes that are read or sent at a time."""

PERMANENT_CODES = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS)
PERMANENT_WORDS = (
    *("is a directory", "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"),
    *("AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "(403)", "Unable to locate credentials"),
)
"""What the operating system and S3 say, by pyarrow and by boto3, when trying again cannot help."""

STYLES = ("path", "virtual")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How S3 is reached: all but the credentials.

    Attributes:
        endpoint: URL of the store; None: AWS.
        region: None: what the AWS chain says.
        style: from `STYLES`.
    """

    endpoint: str | None
    region: str | None
    style: str

    @classmethod
    def of_environment(cls) -> "S3Settings":
        """What this process's environment says.

        Raises:
            StorageError: AWS_S3_ADDRESSING_STYLE is not one of `STYLES`, or path without an endpoint.
        """
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        style = os.environ.get("AWS_S3_ADDRESSING_STYLE") or ("path" if endpoint else "virtual")
        if style not in STYLES:
            raise StorageError("AWS_S3_ADDRESSING_STYLE cannot be understood", seen=style, allowed=", ".join(STYLES))
        if style == "path" and not endpoint:
            raise StorageError("path style needs an endpoint", fix="set AWS_ENDPOINT_URL, for example https://s3.eu-west-1.amazonaws.com")
        return cls(endpoint, os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None, style)


@functools.lru_cache(maxsize=8)
def _s3(settings: S3Settings) -> pafs.S3FileSystem:
    options = {}
    if settings.endpoint:
        parts = urlsplit(settings.endpoint)
        options = {"endpoint_override": parts.netloc or parts.path, "scheme": parts.scheme or "https"}
    if settings.region:
        options["region"] = settings.region
    return pafs.S3FileSystem(
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS_INSIDE),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        allow_bucket_creation=False,
        force_virtual_addressing=settings.style == "virtual",
        **options,
    )


@functools.lru_cache(maxsize=8)
def _s3_client(settings: S3Settings) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        config=Config(
            s3={"addressing_style": "path" if settings.style == "path" else "virtual"},
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS_INSIDE},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        ),
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
        user, at, _ = rest.partition("/")[0].rpartition("@")
        if scheme == "s3" and (at or "?" in rest):
            raise StorageError(
                "an s3 URI holds more than bucket and key", allowed="s3://bucket/key",
                fix="credentials, AWS_ENDPOINT_URL and AWS_REGION belong into the environment of every node",
            )  # fmt: skip
        if scheme not in ("", "file") and rest and ("?" in rest or ":" in user):  # names of files go to the end, where options would be
            raise StorageError(
                "a URI holds options or a password", allowed="scheme://place/path", fix="give them by the environment of every node"
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
            return _s3(S3Settings.of_environment()), self.uri.removeprefix("s3://")
        try:
            filesystem, path = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, ValueError) as error:
            raise StorageError("the URI cannot be opened", seen=self.uri, allowed="a local path, s3://bucket/key, gs://, hdfs://") from error
        return filesystem, path


def local_folder(uri: str) -> Path:
    """The path of an output that has to be a folder of this machine, from a path (a relative one stays so) or ``file://`` URI.

    Raises:
        ConfigError: it is elsewhere.
    """
    if not Location.of(uri).is_local:
        raise ConfigError("this output has to be a folder of this machine", seen=uri, allowed="a local path", fix="copy it to the store afterwards")
    return Path(uri.removeprefix("file://"))


def hopeless(error: OSError) -> bool:
    """Whether the same call would fail again."""
    return isinstance(error, FileNotFoundError) or error.errno in PERMANENT_CODES or any(word in str(error) for word in PERMANENT_WORDS)


def with_retries(call: Callable[[], T], what: str) -> T:
    """Call until it succeeds, at most `ATTEMPTS` times, with growing random pauses. What is `hopeless` is not tried again.

    Raises:
        StorageError: the last error, with what was being done; MissingFileError when there is no such file.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except FileNotFoundError as error:
            raise MissingFileError(f"{what}: not found") from error
        except OSError as error:
            if hopeless(error) or attempt == ATTEMPTS - 1:
                raise StorageError(what, seen=" ".join(str(error).split())[:300]) from error
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Sleep before try number ``attempt + 2``: 0.2, 0.4, ... seconds, at most 10, less a random part of up to half."""
    time.sleep((1 - random.random() / 2) * min(10.0, 0.2 * 2**attempt))


def read_chunks(location: Location) -> Iterator[bytes]:
    """The file's bytes in order, `CHUNK` at a time; a chunk that cannot be read is read again, not what came before it."""
    what = f"reading {location.uri}"

    def opened() -> tuple[pa.NativeFile, int]:
        filesystem, path = location.filesystem()
        file = filesystem.open_input_file(path)
        return file, file.size()

    def read(begin: int, count: int) -> bytes:
        data = file.read_at(count, begin)
        if len(data) < count:
            raise OSError(f"short read at {begin}: {len(data)} of {count} bytes")
        return bytes(data)

    file, length = with_retries(opened, what)
    with file:
        for begin in range(0, length, CHUNK):
            yield with_retries(functools.partial(read, begin, min(CHUNK, length - begin)), what)


def read_bytes(location: Location) -> bytes:
    """The whole file."""
    return b"".join(read_chunks(location))


def write_bytes(location: Location, data: bytes) -> None:
    """Write a file whole or not at all."""
    with_retries(lambda: _write(location, data), f"writing {location.uri}")


def upload_file(source: Path, target: Location) -> None:
    """Copy a local file to a location, whole or not at all, in chunks."""
    with_retries(lambda: _write(target, source), f"writing {target.uri}")


def download_file(source: Location, target: Path) -> None:
    """Copy a file to a new local one, a chunk at a time."""
    with target.open("wb") as file:
        for chunk in read_chunks(source):
            file.write(chunk)


def _write(location: Location, source: bytes | Path) -> None:
    """Try once to write bytes, or what a local file holds: locally through a temporary name, to S3 in one request or one multipart upload."""
    if location.uri.startswith("s3://"):
        _write_s3(location, source)
        return
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if location.is_local:
            _write_local(Path(location.uri), file)
        else:
            filesystem, path = location.filesystem()
            with filesystem.open_output_stream(path) as stream:
                shutil.copyfileobj(file, stream, CHUNK)


def _write_local(path: Path, source: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_s3(location: Location, source: bytes | Path) -> None:
    """Upload; what boto3 raises becomes an OSError with its words."""
    from boto3.exceptions import Boto3Error
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = location.uri.removeprefix("s3://").partition("/")
    client = _s3_client(S3Settings.of_environment())
    parts = TransferConfig(multipart_threshold=CHUNK, multipart_chunksize=CHUNK, max_concurrency=4)
    try:
        if isinstance(source, bytes):
            client.upload_fileobj(io.BytesIO(source), bucket, key, Config=parts)
        else:  # by name: each part is then read while it is sent
            client.upload_file(str(source), bucket, key, Config=parts)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise OSError(errno.EIO, str(error)) from error


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


def delete(location: Location) -> None:
    """Delete a file. Raises MissingFileError when there is none."""
    filesystem, path = location.filesystem()
    with_retries(functools.partial(filesystem.delete_file, path), f"deleting {location.uri}")


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
            download_file(item, folder / item.name)
        yield folder
    finally:
        shutil.rmtree(folder)


def upload_folder(folder: Path, target: Location, last: str) -> None:
    """Copy the files of a local folder to a location, the file named `last` after all others."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
        upload_file(path, target / path.name)
