"""Measure something: `python jobs/benchmark.py SUBJECT [key=value ...]`, for example `python jobs/benchmark.py data`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from serve import benchmark as serve_benchmark
from serve import load as serve_load
from uniovseg.benchmarks import data, feed, mask_classification

SUBJECTS: dict[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "data": (data.DataBenchmarkConfig, data.run),
    "feed": (feed.FeedBenchmarkConfig, feed.run),
    "mask_classification": (mask_classification.MaskClassificationBenchmarkConfig, mask_classification.run),
    "serve": (serve_benchmark.ServeBenchmarkConfig, serve_benchmark.run),
    "serve_load": (serve_load.LoadConfig, serve_load.run),
}


def main(argv: Sequence[str]) -> int:
    """Measure the subject that the first argument names; the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n\nSubjects: {', '.join(SUBJECTS)}. `SUBJECT --help` lists what each can be told.\n")
        return 0
    if not argv or argv[0] not in SUBJECTS:
        sys.stderr.write(f"error: which benchmark? seen: {argv[0] if argv else 'nothing'}; allowed: {', '.join(SUBJECTS)}\n")
        return 2
    config_type, run = SUBJECTS[argv[0]]
    return _cli.run(config_type, run, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
