"""Sweep over scale sets or over the settings of a training: `python jobs/tune.py --config jobs/configs/sweep_scales_shapes.yaml`; --resume goes on."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.job import sweep


def main(config: SweepConfig) -> dict[str, object]:
    """Run the sweep; the report says what is best and where its configuration lies."""
    return sweep(config)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line with --resume as the override that it stands for."""
    return ["resume=true" if argument == "--resume" else argument for argument in argv]


if __name__ == "__main__":
    sys.exit(_cli.run(SweepConfig, main, arguments=arguments))
