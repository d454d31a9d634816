"""Runs side by side: `python jobs/compare.py RUN RUN ... [--output FOLDER] [--tracking URI]`.

A RUN is the id or name of an MLflow run, or the folder of a job. One run alone that has children, such as a sweep, stands for them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.config import CommandLine
from uniovseg.runtime.compare import CompareConfig, compare


def main(config: CompareConfig) -> dict[str, object]:
    """Compare; tables on the terminal, page and picture in config.output."""
    return compare(config)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line in the form that all jobs take."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="MLflow run id or name, or a job's folder")
    parser.add_argument("--output", default="runs/compare", help="folder of compare.html, compare.png and report.json")
    parser.add_argument("--tracking", help="MLflow tracking URI; else MLFLOW_TRACKING_URI")
    given, rest = parser.parse_known_args(argv)
    runs = ", ".join(f"'{run.replace(chr(39), chr(39) * 2)}'" for run in given.runs)
    return [f"runs=[{runs}]", f"output={given.output}", *([f"tracking.uri={given.tracking}"] if given.tracking else []), *rest]


if __name__ == "__main__":
    sys.exit(_cli.run(CompareConfig, main, arguments=arguments))
