"""One way to a Ray cluster: the one that RAY_ADDRESS names (as in a submitted job), else one on this machine."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from ray.exceptions import AuthenticationError

from uniovseg.errors import ConfigError
from uniovseg.storage import Location

KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1024**3), "MALLOC_TRIM_THRESHOLD_": str(4 * 1024**3)}
"""Environment by which glibc keeps what a process frees for what it needs next. By itself it gives images and feature maps back to the kernel, which
clears their pages anew, one fault each, for every sample."""


def local_object_store() -> int:
    """Bytes of the object store of a cluster that a job starts on its own machine: 2 GiB, or a quarter of the memory where that is less.

    What is not used takes none. Too small a store writes training samples to the disk and reads them again, which costs more than to make them.
    """
    return min(2 * 1024**3, int(psutil.virtual_memory().total) // 4)


def quiet_ray_data() -> None:
    """Keep Ray Data's reports of progress in this process off the terminal; its warnings stay, and its log files keep all."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that there are no progress bars, as we asked
    ray.data.DataContext.get_current().enable_progress_bars = False


@contextmanager
def ray_session(cpus: int) -> Iterator[None]:
    """Connect to Ray; a cluster that was started here ends with the block.

    Args:
        cpus: CPUs that a local cluster offers at least. They are names for slots: more than the cores there are is fine, and needed where Train workers
            would leave none for Ray Data, which then waits for ever.

    Raises:
        ConfigError: the cluster that RAY_ADDRESS names refuses this process, or is not there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    quiet_ray_data()
    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(logging_level=logging.WARNING)
        except AuthenticationError as error:
            raise ConfigError(
                "the cluster refuses this process", seen=f"RAY_ADDRESS={address}, RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')}",
                allowed="RAY_AUTH_MODE=token with the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token", fix="ray get-auth-token prints it on the head",
            ) from error  # fmt: skip
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                "the cluster cannot be reached", seen=f"RAY_ADDRESS={address}: {' '.join(str(error).split())[:200]}",
                fix="start it, name its head's address, or unset RAY_ADDRESS for a cluster on this machine",
            ) from error  # fmt: skip
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away; a process less
        # Ray Data reads this in every process of the cluster; it is its own default with the terminal's level raised to WARNING.
        os.environ.setdefault("RAY_DATA_LOGGING_CONFIG", str(Path(__file__).with_name("ray_data_logging.json")))
        # A cluster of one's own asks for a token (made in ~/.ray when there is none); Ray would say so with a warning each time.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        for name, value in KEEP_FREED_MEMORY.items():
            os.environ.setdefault(name, value)
        cpus = max(cpus, os.cpu_count() or 1)
        ray.init(num_cpus=cpus, object_store_memory=local_object_store(), logging_level=logging.WARNING, include_dashboard=True)
    try:
        yield
    finally:
        ray.shutdown()


def refuse_local(several: str, uris: Mapping[str, str]) -> None:
    """Raise ConfigError for the local paths among `uris` (by key), as other machines do not see them; `several` says of the cluster why there are such.

    Nothing is wrong where it is empty.
    """
    local = [f"{key}={uri}" for key, uri in uris.items() if Location.of(uri).is_local]
    if several and local:
        raise ConfigError(
            f"the cluster {several}, and a path of one machine is not seen by the others", seen=", ".join(local),
            allowed="s3://... or another shared URI",
        )  # fmt: skip


def require_shared(uris: Mapping[str, str]) -> None:
    """`refuse_local` for the cluster that this process is connected to: each of several nodes would read and write its own disk."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    on_demand = not any(node["Resources"].get("CPU") for node in nodes)
    refuse_local(f"has {len(nodes)} nodes" if len(nodes) > 1 else "adds nodes on demand" if on_demand else "", uris)
