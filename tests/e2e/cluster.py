"""What a deployment has, on this machine: an object store, an MLflow server, and a Ray cluster of two nodes that asks for a token.

All are processes of the test, ended by their ids with all that descends from them.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.object_store import SECRET, make_bucket
from uniovseg.benchmarks.object_store import ObjectStore

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent

START_SECONDS = 300
"""Only so that a fault ends; a quiet machine needs some seconds."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What runs, and the environment of one who may use it.

    Attributes:
        bucket: URI of an empty bucket.
        tracking_uri: of the MLflow server.
        dashboard: URL that jobs are submitted to.
        address: where a further node joins.
        environment: of the nodes: AWS credentials, endpoint, Ray's token.
        logs: folder of what the processes print.
        ray_folders: of Ray's own files.
    """

    bucket: str
    tracking_uri: str
    dashboard: str
    address: str
    environment: Mapping[str, str]
    logs: Path
    ray_folders: tuple[Path, ...]

    def submit(self, *arguments: str, working_dir: Path = ROOT, timeout: float = 900) -> str:
        """Run a command as a job of the cluster, with the repository as its working directory; what it printed.

        Raises:
            AssertionError: the job failed.
        """
        command = submission(self.dashboard, {"MLFLOW_TRACKING_URI": self.tracking_uri}, arguments, working_dir)
        done = subprocess.run(
            command, env=client(self.environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    @contextmanager
    def another_node(self, cpus: int) -> Iterator[None]:
        """A further node for as long as the block; then it leaves, and what runs on it dies."""
        with ExitStack() as stack:
            count = nodes_alive(self.dashboard, self.environment["RAY_AUTH_TOKEN"])
            log = self.logs / f"ray_{count}.log"
            process = start_node(stack, log, self.environment, ["--address", self.address], short_folder(stack), cpus)
            wait_for(partial(_all_alive, self.dashboard, self.environment["RAY_AUTH_TOKEN"], count + 1), process, log)
            yield
            process.terminate()
            process.wait(60)


def submission(dashboard: str, variables: Mapping[str, str], arguments: Sequence[str], working_dir: Path = ROOT) -> list[str]:
    """The command that submits ``python arguments`` as a job with these environment variables."""
    runtime_env = {"env_vars": {"OMP_NUM_THREADS": "1", **variables}, "excludes": ["/tests/", "/.ci/"]}
    command = [str(PROGRAMS / "ray"), "job", "submit", "--address", dashboard, "--working-dir", str(working_dir)]
    return [*command, "--runtime-env-json", json.dumps(runtime_env), "--", "python", *arguments]


def client(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of one who submits jobs to nodes of `environment`: all that is needed is the token."""
    return os.environ | {name: value for name, value in environment.items() if name.startswith("RAY_AUTH")}


@contextmanager
def running_cluster(folder: Path, cpus: Sequence[int] = (3, 3)) -> Iterator[Cluster]:
    """Start everything, and end it with the block.

    Args:
        folder: of the store, the tracking database and the logs.
        cpus: CPU slots of the head and of the second node.
    """
    with ExitStack() as stack:
        store = ObjectStore(folder / "store", SECRET)
        stack.callback(store.close)
        bucket = make_bucket(store)
        environment = node_environment(store)
        tracking_uri = f"http://127.0.0.1:{(port := free_port())}"
        start_mlflow(stack, folder, environment, f"{bucket}/mlflow", port)
        ray_folders = [short_folder(stack) for _ in cpus]
        dashboard, address, _ = start_ray(stack, folder, environment, list(zip(ray_folders, cpus, strict=True)))
        yield Cluster(bucket, tracking_uri, dashboard, address, environment, folder, tuple(ray_folders))


def node_environment(store: ObjectStore, endpoint: str | None = None) -> dict[str, str]:
    """What all processes of a deployment have in their environment; `endpoint`: of the store, or of what is before it."""
    return store.environment(endpoint) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    }


def short_folder(stack: ExitStack) -> Path:
    """A new folder for a Ray node: its sockets want short paths."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start_mlflow(stack: ExitStack, folder: Path, environment: Mapping[str, str], artifacts: str, port: int) -> "subprocess.Popen[bytes]":
    """A tracking server on an SQLite file of the folder, with its artifacts at a URI."""
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", artifacts]
    process = start(stack, command, environment, folder / "mlflow.log")
    wait_for(lambda: bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).read()), process, folder / "mlflow.log")
    return process


def start_ray(
    stack: ExitStack, folder: Path, environment: Mapping[str, str], nodes: Sequence[tuple[Path, int]]
) -> tuple[str, str, list["subprocess.Popen[bytes]"]]:
    """A head and further nodes, given the folder and CPU slots of each; the dashboard's URL, where nodes join, and their processes, the head's first."""
    port, dashboard_port = free_port(), free_port()
    dashboard, address = f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{port}"
    head = ["--head", "--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
    head += ["--ray-client-server-port", str(free_port())]
    processes = []
    for number, (temporary, slots) in enumerate(nodes):
        log = folder / f"ray_{number}.log"
        processes.append(start_node(stack, log, environment, ["--address", address] if number else head, temporary, slots))
        wait_for(partial(_all_alive, dashboard, environment["RAY_AUTH_TOKEN"], number + 1), processes[-1], log)
    return dashboard, address, processes


def start_node(
    stack: ExitStack, log: Path, environment: Mapping[str, str], role: Sequence[str], temporary: Path, cpus: int
) -> "subprocess.Popen[bytes]":
    """A node with CPU slots and a folder for Ray's files; `role`: options by which it is the head or joins one."""
    command = ["ray", "start", "--block", *role, "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus), "--temp-dir", str(temporary)]
    command += ["--object-store-memory", "150000000"]
    command += ["--metrics-export-port", str(free_port()), "--dashboard-agent-listen-port", str(free_port())]
    return start(stack, command, environment, log)


def _all_alive(dashboard: str, token: str, nodes: int) -> bool:
    return nodes_alive(dashboard, token) == nodes


def nodes_alive(dashboard: str, token: str) -> int:
    """Nodes of the cluster that live."""
    request = urllib.request.Request(f"{dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    nodes = json.load(urllib.request.urlopen(request, timeout=10))["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def start(stack: ExitStack, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Start one of our programs; the stack ends it and its descendants."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(PROGRAMS / command[0]), *command[1:]], env=os.environ | dict(environment), cwd=log.parent, stdout=output, stderr=output
        )
    stack.callback(end_tree, process)
    return process


def end_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process of ours and all that descend from it."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:  # the parent first: Ray's would start again what it misses
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(30)
    psutil.wait_procs(family, timeout=30)


def wait_for(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Ask until the answer is yes. An answer that cannot be had is no."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if ready():
                return
        except (OSError, KeyError, ValueError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready after {START_SECONDS} s: {log.read_text()[-3000:]}")
