"""What can be known to go wrong before a training is launched, each with what to do about it.

A check looks at one thing: it returns what it saw, or raises the error that the launch would end in, or hang in without a word. `fit` requires
them all, so that the first error stops it; ``python -m uniovseg doctor`` calls every check and shows a table.
"""

import math
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch
from botocore.exceptions import BotoCoreError
from botocore.session import get_session
from ray.exceptions import AuthenticationError, GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table

from uniovseg import checkpoint, storage
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.data.shards import ShardSet
from uniovseg.errors import CheckpointError, ConfigError, MissingFileError, StorageError, UniOVSegError
from uniovseg.runtime import registry
from uniovseg.runtime.datasets import CPUS_OF_A_FEED
from uniovseg.runtime.model_size import model_size
from uniovseg.runtime.session import local_object_store, ray_session, refuse_local
from uniovseg.storage import Location
from uniovseg.training import refuse_other_run

if TYPE_CHECKING:
    from uniovseg.runtime.train import TrainJobConfig

SHARED_MEMORY = Path("/dev/shm")

FULLEST = 0.95
"""Share of a disk in use from which Ray makes no more objects on that node."""

ANSWER_SECONDS = 120
"""How long a node may take to start a process and look around."""

FILE_STORES = ("sqlite:", "file:")
"""How the URI of an MLflow store begins that is a file or folder; one without a scheme is a folder too."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster.

    Attributes:
        name: host name.
        cpus, gpus: slots that Ray offers there.
        object_store: bytes of Ray's object store.
        shared_memory: bytes of /dev/shm; None where there is none.
        disk, free_disk: bytes of the disk of temporary files, and how many are free.
        unreadable: why this node cannot read what the driver wrote into the output, or the CLIP's weights; empty when it can.
    """

    name: str
    cpus: float
    gpus: float
    object_store: int
    shared_memory: int | None
    disk: int
    free_disk: int
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: its name, whether all is well, and what was seen or what is wrong."""

    check: str
    well: bool
    detail: str


Check = tuple[str, Callable[[], str]]


def diagnose(checks: Iterable[Check]) -> list[Finding]:
    """Run every check, whatever the others find."""
    findings = []
    for name, check in checks:
        try:
            findings.append(Finding(name, True, check()))
        except UniOVSegError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def require(checks: Iterable[Check]) -> None:
    """Run the checks; the error of the first one that fails is raised."""
    for _, check in checks:
        check()


def examine(config: "TrainJobConfig") -> list[Finding]:
    """Every check of a run, on the cluster that RAY_ADDRESS names, or on this machine. Local paths of `config` are absolute."""
    findings = diagnose(first_checks(config))
    if findings[0].well:
        findings += diagnose(storage_checks(config))
    else:
        findings.append(Finding("output, data, checkpoints", False, "not looked at without credentials"))
    if not os.environ.get("RAY_ADDRESS"):
        return findings + diagnose(cluster_checks(config, [this_machine(config)]))
    try:
        with ray_session(0):
            return findings + diagnose(cluster_checks(config, cluster_nodes(config)))
    except (UniOVSegError, ConnectionError, RuntimeError, AuthenticationError) as error:
        said = " ".join(str(error).split())[:300]
        fix = "is RAY_ADDRESS the head's, and RAY_AUTH_MODE=token with its token set?"
        return [*findings, Finding("cluster", False, f"the cluster cannot be examined; seen: {said}; {fix}")]


def findings_table(findings: Sequence[Finding]) -> Table:
    """The findings for a terminal."""
    table = Table("check", "", "seen", title="doctor")
    for finding in findings:
        table.add_row(finding.check, "ok" if finding.well else "[bold red]wrong[/]", finding.detail)
    return table


def first_checks(config: "TrainJobConfig") -> list[Check]:
    """The checks that need neither storage nor a cluster."""
    return [
        ("credentials", partial(check_credentials, config)),
        ("tracking", partial(check_tracking, config)),
        ("token authentication", check_token),
    ]


def storage_checks(config: "TrainJobConfig") -> list[Check]:
    """The checks that read and write; where S3 finds no credentials each would take minutes."""
    return [
        ("output", partial(check_output, config)),
        ("training data", partial(check_data, config)),
        ("same run", partial(check_same_run, config)),
        ("initial weights", partial(check_init, config)),
    ]


def cluster_checks(config: "TrainJobConfig", nodes: Sequence[Node]) -> list[Check]:
    """The checks of the cluster that will run the training."""
    return [
        ("workers", partial(check_workers, config, nodes)),
        ("CPUs for the feed", partial(check_feed, config, nodes)),
        ("storage of all nodes", partial(check_shared, config, nodes)),
        ("tracking of all nodes", partial(check_shared_tracking, config, nodes)),
        ("shared memory", partial(check_shared_memory, config, nodes)),
        ("disk", partial(check_disk, config, nodes)),
    ]


def _uris(config: "TrainJobConfig") -> dict[str, str]:
    """The URIs that a run reads and writes, by key."""
    uris = {"output": config.output, "data.train": config.data.train, "validation.shards": config.validation.shards, "init": config.init}
    return {key: uri for key, uri in uris.items() if uri is not None and uri not in checkpoint.SHIPPED and not uri.startswith(checkpoint.REGISTERED)}


def s3_credentials() -> str | None:
    """How the AWS chain of this process finds credentials (environment, profile, instance role), or None; the secrets stay where they are."""
    try:
        found = get_session().get_credentials()
    except BotoCoreError as error:
        raise StorageError("the AWS credentials cannot be loaded", seen=error, fix="look at AWS_PROFILE and ~/.aws") from error
    return None if found is None else str(found.method)


def check_credentials(config: "TrainJobConfig") -> str:
    """S3 credentials are found where a URI needs them. Without this check, S3's client looks for them for minutes."""
    keys = [key for key, uri in _uris(config).items() if uri.startswith("s3://")]
    if not keys:
        return "none needed: no s3:// URI"
    method = s3_credentials()
    if method is None:
        raise StorageError(
            "no S3 credentials are found", seen=f"s3:// in {', '.join(keys)}", allowed="environment, profile or instance role",
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment of every node",
        )  # fmt: skip
    return f"found by {method}"


def _place(output: Location) -> Location:
    """Where a file can be written without leaving folders behind: the output itself, or the nearest folder above it that is there."""
    if not output.is_local:
        return output
    path = Path(output.uri)
    return Location(str(next(folder for folder in (path, *path.parents) if folder.is_dir())))


def check_output(config: "TrainJobConfig") -> str:
    """A tiny file can be written to the output, read back, and deleted."""
    output = Location.of(config.output)
    probe, written = _place(output) / f".doctor-{uuid.uuid4().hex[:12]}", uuid.uuid4().bytes
    fix = "may these credentials write there? AWS_ENDPOINT_URL and AWS_REGION name another endpoint" if not output.is_local else "give another output"
    try:
        storage.write_bytes(probe, written)
        read = storage.read_bytes(probe)
        storage.delete(probe)
    except StorageError as error:
        raise StorageError(f"the output cannot be used: {error}", fix=fix) from error
    if read != written:
        raise StorageError("the output does not give back what is written to it", seen=probe.uri, fix=fix)
    return f"{output.uri}: written, read, deleted"


def run_checkpoints(output: Location) -> list[Location]:
    """The manifests of a run's checkpoints, oldest first; not those of runs whose folders are below its own."""
    found = storage.list_files(output, checkpoint.MANIFEST, recursive=True)
    return [file for file in found if re.fullmatch(rf"/step_\d+/{checkpoint.MANIFEST}", file.uri.removeprefix(output.uri))]


def check_same_run(config: "TrainJobConfig") -> str:
    """Checkpoints in the output are of a run with this configuration; where a resume is asked for, there are some."""
    output = Location.of(config.output)
    manifests = run_checkpoints(output)
    if not manifests:
        if config.resume:
            raise CheckpointError(
                "there is nothing to resume", seen=output.uri, allowed="a run's output with a checkpoint", fix="or leave out --resume"
            )
        return "a new run"
    info = CheckpointInfo.model_validate_json(storage.read_bytes(manifests[-1]))
    if config.init is not None and config.init.startswith(checkpoint.REGISTERED):  # the run was launched with the model's files
        files = registry.files_of(registry.find(config.init, config.tracking.resolve()), output)
        config = config.model_copy(update={"init": files.uri})
    refuse_other_run(config, info, ShardSet(config.data.train).layout)
    return f"goes on after step {info.step} of {config.steps}"


def check_data(config: "TrainJobConfig") -> str:
    """The training and validation sets have manifests, and the batch can be divided."""
    shards = ShardSet(config.data.train)
    if config.validation.shards is not None:
        ShardSet(config.validation.shards)
    fewest = config.workers * config.accumulate
    if config.batch_size % (fewest if config.min_workers is None else config.accumulate) or config.batch_size < fewest:
        raise ConfigError(
            "batch_size does not divide evenly", seen=f"{config.batch_size} over {config.workers} workers x {config.accumulate}",
            allowed=f"a multiple of {fewest}" if config.min_workers is None else f"a multiple of {config.accumulate}, at least {fewest}",
        )  # fmt: skip
    return f"{shards.manifest.samples} samples in {len(shards.manifest.shards)} shards"


def check_init(config: "TrainJobConfig") -> str:
    """The checkpoint or registered model that the run starts from exists."""
    init = config.init
    if init is None:
        return "random"
    if init in checkpoint.SHIPPED:
        return f"{init}, packaged"
    if init.startswith(checkpoint.REGISTERED):
        registry.find(init, config.tracking.resolve())
        return f"{init}, registered"
    manifest = Location.of(init) / checkpoint.MANIFEST
    try:
        info = CheckpointInfo.model_validate_json(storage.read_bytes(manifest))
    except MissingFileError as error:
        raise CheckpointError(
            "init: no checkpoint here", seen=init, allowed=f"a folder with {checkpoint.MANIFEST}, {checkpoint.MODEL}, or {', '.join(checkpoint.SHIPPED)}",
            fix="a run's final checkpoint is the folder model/ of its output",
        ) from error  # fmt: skip
    except ValueError as error:
        raise CheckpointError("init: the checkpoint's manifest cannot be read", seen=manifest.uri, fix="it may be of another version") from error
    return f"{init}: {info.method.get('name')}, step {info.step}"


def check_tracking(config: "TrainJobConfig") -> str:
    """The tracking URI can be used."""
    return "on" if config.tracking.resolve() else "off (no tracking.uri, no MLFLOW_TRACKING_URI)"


def check_token() -> str:
    """Ray asks for a token and this process has one; `RAY_AUTH_MODE` tells its clients to send it."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return "off: who reaches the cluster's ports runs code on it; let nobody do so, or unset RAY_AUTH_MODE"
    token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "on: the cluster of this machine makes its own token"
    if mode == "token" and not token:
        raise ConfigError(
            "there is no token for the cluster", seen=f"RAY_ADDRESS={address}", allowed="RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
            fix="copy the head's token; ray get-auth-token prints it there",
        )  # fmt: skip
    if mode != "token" or not token:
        return "off: none is sent, and a cluster that asks for one refuses; it needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token"
    return "on"


def check_workers(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """All workers, or those that the run begins with, find a place at the same time; else they are waited for in vain."""
    fits = sum(_workers_of(config, node) for node in nodes)
    if fits < (config.min_workers or config.workers):
        if config.autoscaled:
            return f"{config.describe_workers} each; room for {fits} now, waits at most {config.start_minutes:g} minutes for nodes"
        raise ConfigError(
            "the cluster is too small for the workers", seen=f"workers={config.describe_workers} each; room for {fits} on {len(nodes)} nodes",
            allowed=f"at most {fits}", fix="lower workers, min_workers or cpus_per_worker, or add nodes; autoscaled=true where they come on demand",
        )  # fmt: skip
    return f"{config.describe_workers} each; room for {fits}"


def _workers_of(config: "TrainJobConfig", node: Node) -> int:
    """How many workers fit on a node."""
    by_cpus = int(node.cpus / config.cpus_per_worker + 1e-6)
    return min(by_cpus, int(node.gpus / config.gpus_per_worker + 1e-6)) if config.gpus_per_worker else by_cpus


def check_feed(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """Beside the workers enough CPUs are left for Ray Data; with fewer it waits without a word. An elastic run begins with as many workers as fit."""
    if config.data.feed != "ray":
        return f"none needed: data.feed={config.data.feed}"
    fits = sum(_workers_of(config, node) for node in nodes)
    workers = config.workers if config.min_workers is None else max(config.min_workers, min(config.workers, fits))
    cpus, taken, needed = sum(node.cpus for node in nodes), workers * config.cpus_per_worker, workers * CPUS_OF_A_FEED
    if cpus - taken < needed:
        if config.autoscaled:
            return f"{max(0.0, cpus - taken):g} of {cpus:g} are left now, {needed:g} needed: nodes are to come"
        raise ConfigError(
            "too few CPUs are left for Ray Data beside the workers", seen=f"{cpus - taken:g} of {cpus:g} beside {workers} workers",
            allowed=f"at least {needed:g}", fix="lower workers or cpus_per_worker, add CPU nodes, or set data.feed=threads",
        )  # fmt: skip
    return f"{cpus - taken:g} of {cpus:g} are left, {needed:g} needed"


def _several(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """Says so where the cluster has, or will have, more than one node."""
    return f"has {len(nodes)} nodes" if len(nodes) > 1 else "adds nodes on demand" if config.autoscaled else ""


def check_shared(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """Every node sees the run's files: no local path where there are several nodes, and each can read the output."""
    refuse_local(_several(config, nodes), _uris(config))
    blind = [node for node in nodes if node.unreadable]
    if blind:
        raise StorageError(
            f"{len(blind)} of {len(nodes)} nodes cannot read what the run needs", seen=f"{blind[0].name}: {blind[0].unreadable}",
            fix="give every node the credentials, AWS_ENDPOINT_URL and AWS_REGION, and the file of method.clip.weights at the same path",
        )  # fmt: skip
    return "one node" if len(nodes) == 1 else f"{len(nodes)} nodes read {config.output}"


def check_shared_tracking(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """A tracking store that is a file is for one node."""
    uri = config.tracking.resolve()
    if uri is None:
        return "off"
    if (several := _several(config, nodes)) and (uri.startswith(FILE_STORES) or "://" not in uri):
        raise ConfigError(
            f"the cluster {several}, and an MLflow store that is a file is seen by one", seen=uri, allowed="http(s)://...",
            fix="start mlflow server, name it by MLFLOW_TRACKING_URI, and give tracking.uri=null",
        )  # fmt: skip
    return "one node" if len(nodes) == 1 else "a server"


def check_shared_memory(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """Each node's /dev/shm holds its object store. Without that Ray uses files, which is slow; GPU workers fail, as NCCL needs it too."""
    small = [node for node in nodes if node.shared_memory is not None and node.shared_memory < node.object_store]
    if not small:
        return "holds the object store on every node"
    node = small[0]
    assert node.shared_memory is not None
    seen = f"{_size(node.shared_memory)} on {node.name}, {len(small)} of {len(nodes)} nodes are so"
    allowed, fix = (
        f"at least {_size(node.object_store)}, the object store",
        "docker run --shm-size, or in Kubernetes an emptyDir of medium Memory at /dev/shm",
    )
    if config.gpus_per_worker:
        raise ConfigError("/dev/shm is too small", seen=seen, allowed=allowed, fix=fix)
    return f"slow, not wrong: {seen}; {allowed}; {fix}"


def check_disk(config: "TrainJobConfig", nodes: Sequence[Node]) -> str:
    """Checkpoints have room: on each node one that waits for its upload, and from a store one for each worker to go on from; those kept in a local output."""
    size, output = model_size(config.method).checkpoint_bytes, Location.of(config.output)
    for node in nodes:
        used, copies = 1 - node.free_disk / node.disk, 1 if output.is_local else 1 + min(config.workers, _workers_of(config, node))
        if used > FULLEST or node.free_disk < copies * size:
            raise StorageError(
                f"the disk of temporary files of {node.name} is too full", seen=f"{_size(node.free_disk)} free, {used:.0%} in use",
                allowed=f"at least {_size(copies * size)} for {copies} checkpoints, and at most {FULLEST:.0%} in use, where Ray stops",
                fix="free it, or set TMPDIR",
            )  # fmt: skip
    kept = size * (config.keep_checkpoints + 2)
    if output.is_local and (free := shutil.disk_usage(_place(output).uri).free) < kept:
        raise StorageError(
            "the output's disk has no room for the checkpoints", seen=f"{_size(free)} free", allowed=f"at least {_size(kept)}",
            fix="free it, give another output, or lower keep_checkpoints",
        )  # fmt: skip
    return f"room for checkpoints of {_size(size)}; least free: {_size(min(node.free_disk for node in nodes))}"


def _size(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.1f} MiB"


def _look(node: Node, probe: Location | None, weights: str | None = None) -> Node:
    """`node` with what only a process on it can see."""
    unreadable = "" if weights is None or Path(weights).is_file() else f"{weights} is not there"
    if probe is not None:
        try:
            storage.read_bytes(probe)
        except StorageError as error:
            unreadable = str(error)
    disk = shutil.disk_usage(tempfile.gettempdir())
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    return Node(node.name, node.cpus, node.gpus, node.object_store, shared, disk.total, disk.free, unreadable)


def slots(config: "TrainJobConfig") -> int:
    """CPU slots that a run takes: its workers and, where Ray Data feeds them, its feeds."""
    feed = CPUS_OF_A_FEED if config.data.feed == "ray" else 0.0
    return math.ceil(config.workers * (config.cpus_per_worker + feed))


def this_machine(config: "TrainJobConfig") -> Node:
    """The node of the cluster that a run starts on this machine when RAY_ADDRESS names none."""
    cpus = max(slots(config), os.cpu_count() or 1)
    return _look(Node(socket.gethostname(), cpus, torch.cuda.device_count(), local_object_store(), None, 0, 0), None)


def cluster_nodes(config: "TrainJobConfig") -> list[Node]:
    """The nodes of the cluster that this process is connected to, each looked at by a process on it.

    A file of weights may be of the image that all nodes run, so it is looked for where it is needed.

    Raises:
        StorageError: a node does not answer in `ANSWER_SECONDS`.
    """
    output, weights = Location.of(config.output), config.method.clip.weights
    weights = weights if weights is not None and Path(weights).is_file() else None  # else it is a tag of open_clip's
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = {
        node["NodeID"]: Node(
            node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0),
            int(node["Resources"].get("object_store_memory", 0)), None, 0, 0,
        )
        for node in alive
    }  # fmt: skip
    if len(nodes) == 1 and (own := next(iter(nodes.values()))).name == socket.gethostname():
        return [_look(own, None)]
    probe = None if output.is_local else output / f".doctor-{uuid.uuid4().hex[:12]}"
    if probe is not None:
        storage.write_bytes(probe, b"read by every node")
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        places = {identity: NodeAffinitySchedulingStrategy(identity, soft=False) for identity in nodes}
        looks = [look.options(scheduling_strategy=places[identity]).remote(node, probe, weights) for identity, node in nodes.items()]
        seen: list[Node] = ray.get(looks, timeout=ANSWER_SECONDS)
    except GetTimeoutError as error:
        raise StorageError(
            f"a node of the cluster does not answer in {ANSWER_SECONDS} s", seen=", ".join(node.name for node in nodes.values()),
            fix="ray status shows the nodes; take the dead one away",
        ) from error  # fmt: skip
    finally:
        if probe is not None:
            storage.delete(probe)
    return seen
