"""Train a method on Ray: `python jobs/train.py --config jobs/configs/stage1_shapes.yaml`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.train import TrainJobConfig, fit


def main(config: TrainJobConfig) -> dict[str, object]:
    """Train; the report says where the checkpoint is."""
    return fit(config)


if __name__ == "__main__":
    sys.exit(_cli.run(TrainJobConfig, main))
