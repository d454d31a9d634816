"""A real S3-compatible store on this machine: OpenStack Swift with its S3 interface, from the dev extra, on one local folder.

Unlike a mock it checks signatures, keeps objects on a disk, and knows multipart uploads. Four servers, as processes that end with the one that started
them; nobody can reach them from another machine.
"""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from uniovseg.errors import StorageError

KINDS = ("object", "container", "account", "proxy")

DEFAULTS = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {root}/etc
devices = {root}/srv
mount_check = false
fallocate_reserve = 0
log_level = WARNING
[pipeline:main]
pipeline = {pipeline}
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """account_autocreate = true
allow_account_management = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
allow_no_owner = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_{user} = {secret} .admin .reseller_admin
"""

MAKE_RINGS = """
import sys
from swift.common.ring import RingBuilder
for argument in sys.argv[1:]:
    path, port = argument.split("=")
    builder = RingBuilder(4, 1, 0)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1))
    builder.rebalance()
    builder.get_ring().save(path)
"""
"""Writes where the servers are; in a process of its own, as Swift's modules change the one that imports them."""

PLAIN_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "copy", "slo", "dlo")

PIPELINE = "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo dlo proxy-server"


class ObjectStore:
    """Starts the servers; `close` ends them.

    Args:
        root: folder of the configuration and the objects; its file system must know extended attributes.
        secret: the secret key; None: a random one.

    Raises:
        StorageError: Swift is not installed, or a server does not come up.
    """

    access_key = "test:tester"

    def __init__(self, root: Path, secret: str | None = None) -> None:
        self.secret_key = secret or secrets.token_hex(16)
        self._root = root
        self._programs = Path(sys.executable).parent
        if not (self._programs / "swift-proxy-server").exists():
            raise StorageError("the object store of tests and benchmarks is not installed", seen="no swift", fix="pip install 'uniovseg[dev]'")
        ports = _free_ports(len(KINDS))
        self.endpoint = f"http://127.0.0.1:{ports[-1]}"
        self._configure(dict(zip(KINDS, ports, strict=True)))
        self._processes = [self._start(kind) for kind in KINDS]
        self._wait_until_up()

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The environment that leads to the store, or to `endpoint` before it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def pids(self) -> list[int]:
        """The servers' process ids."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the servers."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(30)

    def _configure(self, ports: dict[str, int]) -> None:
        etc = self._root / "etc"
        etc.mkdir(parents=True)
        (self._root / "srv/d1").mkdir(parents=True)
        (etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n[storage-policy:0]\nname = p0\ndefault = yes\n"
        )
        user, name = os.environ.get("USER", "root"), self.access_key.partition(":")[2]
        for kind, port in ports.items():
            pipeline = PIPELINE if kind == "proxy" else f"{kind}-server"
            text = DEFAULTS.format(port=port, user=user, root=self._root, pipeline=pipeline, kind=kind)
            if kind == "proxy":
                text += PROXY.format(user=name, secret=self.secret_key)
                text += "".join(f"[filter:{item}]\nuse = egg:swift#{item}\n" for item in PLAIN_FILTERS)
            path = etc / f"{kind}-server.conf"
            path.touch(0o600)
            path.write_text(text)
        rings = [f"{etc}/{kind}.ring.gz={ports[kind]}" for kind in KINDS[:-1]]
        subprocess.run([sys.executable, "-c", MAKE_RINGS, *rings], check=True, stderr=subprocess.DEVNULL)

    def _start(self, kind: str) -> "subprocess.Popen[bytes]":
        command = [str(self._programs / f"swift-{kind}-server"), str(self._root / f"etc/{kind}-server.conf")]
        with (self._root / f"{kind}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONWARNINGS": "ignore"}, preexec_fn=_end_with_parent)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and all(process.poll() is None for process in self._processes):
            try:
                urllib.request.urlopen(f"{self.endpoint}/healthcheck", timeout=10).read()
            except OSError:
                time.sleep(0.1)
            else:
                return
        self.close()
        logs = " | ".join((self._root / f"{kind}.log").read_text()[-300:] for kind in KINDS)
        raise StorageError("the object store does not come up", seen=" ".join(logs.split()))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def _end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
