"""The command line that all jobs share: ``--config FILE``, dotted overrides, ``--help`` with every key, ``--dry-run``, ``report.json`` and ``config.yaml``."""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from uniovseg import storage
from uniovseg.config import CommandLine, ConfigT, key_help, load, to_yaml
from uniovseg.errors import ConfigError, UniOVSegError, tell
from uniovseg.storage import Location, local_folder


def config_file(name: str | None) -> str | None:
    """A configuration file by its path, or by its name among the shipped ones."""
    if name is None or Path(name).exists():
        return name
    shipped = Path(__file__).parent / "configs" / name
    return str(shipped) if shipped.is_file() else name


def begin_anew(output: str, job: str, folders: Sequence[str]) -> str:
    """Delete what an earlier run of a job left in its output: `folders`, no others. A mark says that the output is the job's; the first run leaves it.

    Returns:
        The output's path.

    Raises:
        ConfigError: the output is no folder of this machine, or has such folders but neither the job's mark nor its report: they are somebody's own.
    """
    root = local_folder(output)
    mark, report = root / f".uniovseg-{job}", root / "report.json"
    found = [root / name for name in folders if (root / name).exists()]
    if found and not mark.exists() and not (report.is_file() and '"promptable"' in report.read_text()):
        raise ConfigError(
            f"the output has folders that {job} would delete, and no mark of an earlier run of it", seen=", ".join(map(str, found)),
            allowed="an empty folder, or an earlier run's", fix="give another output",
        )  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    mark.touch()
    for folder in found:
        shutil.rmtree(folder)
    return str(root)


def _end(*_: object) -> None:
    """End as an interrupted program does, so that open runs are closed and temporary files go."""
    sys.exit(128 + signal.SIGTERM)


def run(
    config_type: type[ConfigT],
    main: Callable[[ConfigT], dict[str, Any]],
    argv: Sequence[str] | None = None,
    arguments: Callable[[Sequence[str]], Sequence[str]] = list,
) -> int:
    """Parse the command line, run `main` with the configuration, write its report and the configuration; returns the exit code.

    Args:
        config_type: the job's configuration.
        main: the job; what it returns is the report.
        argv: the command line; None: this process'.
        arguments: brings the command line of a job with options of its own into the form that all jobs take.

    0: done. 1: the job failed for a reason that the message says. 2: the command line or the configuration is wrong.
    """
    module = sys.modules[main.__module__]
    parser = CommandLine(description=module.__doc__, epilog=key_help(config_type), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file, by its path or by its name in jobs/configs")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of single keys, for example optim.lr=3e-4")
    signal.signal(signal.SIGTERM, _end)
    try:
        given = parser.parse_intermixed_args(arguments(sys.argv[1:] if argv is None else argv))
        config = load(config_type, config_file(given.config), given.overrides)
        if given.dry_run:
            sys.stdout.write(to_yaml(config))
            return 0
        report = main(config)
        output = getattr(config, "output", None)
        if output is not None:
            storage.write_bytes(Location.of(output) / "config.yaml", to_yaml(config).encode())
            storage.write_bytes(Location.of(output) / "report.json", (json.dumps(report, indent=2) + "\n").encode())
            Console().print(f"report: {output}/report.json", soft_wrap=True)
    except UniOVSegError as error:
        return tell(error)
    return 0
