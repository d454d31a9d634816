"""What a run was made of: the code's version, the versions of what it runs on, and the data sets that its configuration names."""

import getpass
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from uniovseg import storage
from uniovseg.data.shards import MANIFEST
from uniovseg.errors import MissingFileError, StorageError
from uniovseg.storage import Location

COMMIT, DIRTY = "UNIOVSEG_GIT_COMMIT", "UNIOVSEG_GIT_DIRTY"
"""Environment variables that say which code this is where there is no repository, as in a submitted job's working directory or an image."""

PACKAGES = ("uniovseg", "torch", "ray", "mlflow", "open_clip_torch", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A shard set that a run reads or writes: the configuration's key, the URI, and 16 hexadecimal digits of its manifest's SHA-256."""

    key: str
    uri: str
    digest: str


def code_version() -> dict[str, str]:
    """``git_commit`` and ``git_dirty`` (true, false) of the repository that this package lies in, else of the environment; empty where neither says."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        pass
    given = {"git_commit": os.environ.get(COMMIT), "git_dirty": os.environ.get(DIRTY)}
    return {name: value for name, value in given.items() if value}


def environment() -> dict[str, str]:
    """Tags that say where a run ran: versions, platform and machine; MLflow's own tags for user, program and commit, which its pages show."""
    tags = {"python": platform.python_version(), "platform": platform.platform(), "host": socket.gethostname(), "cpus": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            tags[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    own = {"mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
    if job := os.environ.get("RAY_JOB_SUBMISSION_ID"):
        own |= {"mlflow.source.type": "JOB", "ray_job": job}
    try:
        own["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        own["mlflow.user"] = str(os.getuid())
    version = code_version()
    if "git_commit" in version:
        own["mlflow.source.git.commit"] = version["git_commit"]
    return version | {f"environment.{name}": value for name, value in tags.items()} | own


def datasets(values: Mapping[str, Any]) -> list[Dataset]:
    """The shard sets among the values of a flattened configuration; places that cannot be read are left to the job, which says why."""
    found = []
    for key, value in values.items():
        if isinstance(value, str) and "/" in value and "\n" not in value:
            digest = _digest(value)
            if digest is not None:
                found.append(Dataset(key, Location.of(value).uri, digest))
    return found


def _digest(uri: str) -> str | None:
    """The digest of a shard set's manifest; None where there is none."""
    if "://" in uri and not uri.startswith(("s3://", "file://")):
        return None
    try:
        manifest = Location.of(uri) / MANIFEST
        if manifest.is_local and not Path(manifest.uri).is_file():
            return None
        return hashlib.sha256(storage.read_bytes(manifest)).hexdigest()[:16]
    except (MissingFileError, StorageError, OSError):
        return None
