"""Train a method on Ray: `python jobs/train.py --config jobs/configs/stage1_shapes.yaml`.

A run whose output holds checkpoints goes on from the newest; --resume refuses to begin anew. Without --config it trains on the shapes world, made first.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.shapes_preset import train_on_shapes
from uniovseg.runtime.train import TrainJobConfig, fit

PRESET = Path(__file__).with_name("configs") / "stage1_shapes.yaml"


def main(config: TrainJobConfig) -> dict[str, object]:
    """Train; the report says where the checkpoint is."""
    return fit(config)


def on_shapes(config: TrainJobConfig) -> dict[str, object]:
    """Train on the shapes world."""
    return train_on_shapes(config)


def command(argv: Sequence[str]) -> int:
    """Run the command line; ``--resume`` stands for ``resume=true``."""
    argv = ["resume=true" if argument == "--resume" else argument for argument in argv]
    if any(argument.partition("=")[0] == "--config" for argument in argv):
        return _cli.run(TrainJobConfig, main, argv)
    return _cli.run(TrainJobConfig, on_shapes, ["--config", str(PRESET), *argv])


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
