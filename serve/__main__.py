"""The service on this machine: ``python -m serve [--config FILE] [key=value ...]``; stops on SIGINT or SIGTERM once what is under way is answered."""

import argparse
import logging
import os
import signal
import threading
from pathlib import Path

from pydantic import Field
from rich.console import Console

from serve.settings import ServiceConfig
from uniovseg import checkpoint
from uniovseg.config import CommandLine, fields, load
from uniovseg.errors import UniOVSegError, tell

QUICKSTART = (Path("runs/quickstart/stage2/model"), Path("runs/quickstart/stage1/model"))
"""Where the quickstart leaves its checkpoints, the best first."""

APPLICATION = "uniovseg"


class LocalConfig(ServiceConfig):
    """The application, and where it listens."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on")


def default_checkpoint() -> str:
    """The quickstart's checkpoint where there is one, else the packaged model."""
    found = [folder for folder in QUICKSTART if (folder / checkpoint.MANIFEST).exists()]
    return str(found[0].absolute()) if found else "shapes"


def main() -> int:
    """Start, say where, wait, drain."""
    keys = "\n".join(f"  {item.key}  default: {item.default}\n      {item.description}" for item in fields(LocalConfig))
    parser = CommandLine(prog="python -m serve", description=__doc__, epilog=f"keys:\n{keys}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of single keys, for example port=8080")
    try:
        arguments = parser.parse_args()
        config = load(LocalConfig, arguments.config, arguments.overrides)
        if "checkpoint" not in config.model_fields_set:
            config = config.model_copy(update={"checkpoint": default_checkpoint()})
        check(config)
    except UniOVSegError as error:
        return tell(error)
    run(config)
    return 0


def check(config: LocalConfig) -> None:
    """Raise UniOVSegError where the keys or the checkpoint cannot be read: replicas would try again and again, and Ray print what happened each time."""
    from serve.deployments import api_keys
    from uniovseg.runtime.registry import load_segmenter

    api_keys(config.keys_file, config.keys_required)
    load_segmenter(config.checkpoint, changes=config.changes)


def run(config: LocalConfig) -> None:
    """Serve until a signal comes; then answer what is under way, and end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from serve.app import build

    console = Console()
    packaged = config.checkpoint in checkpoint.SHIPPED
    console.print(f"model: {config.checkpoint}{' (packaged with uniovseg)' if packaged else ''}", soft_wrap=True)
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        cpus = max(os.cpu_count() or 1, int(config.replicas * config.cpus) + 2)
        ray.init(num_cpus=cpus, object_store_memory=256 * 1024**2, logging_level=logging.WARNING, include_dashboard=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": config.host, "port": config.port})
    service = ServiceConfig.model_validate(config.model_dump(include=set(ServiceConfig.model_fields)))
    serve.run(build(service), name=APPLICATION, route_prefix="/")
    console.print(f"ready: http://{config.host}:{config.port}/  (documentation: /docs)", soft_wrap=True)
    stop.wait()
    console.print("stopping once what is under way is answered")
    serve.delete(APPLICATION)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
