"""Train the CLIP of the shapes world on scenes with captions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.pretrain import PretrainJobConfig, pretrain_job


def main(config: PretrainJobConfig) -> dict[str, object]:
    """Train; weights, card and report go to config.output."""
    return pretrain_job(config)


if __name__ == "__main__":
    sys.exit(_cli.run(PretrainJobConfig, main))
