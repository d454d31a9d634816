"""Train the CLIP of the shapes world on scenes with captions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.pretraining import PretrainConfig, pretrain
from uniovseg.runtime.tracking import code_version


def main(config: PretrainConfig) -> dict[str, object]:
    """Train; weights, card and report go to config.output."""
    return dict(pretrain(config, code_version().get("git_commit", "unknown")))


if __name__ == "__main__":
    sys.exit(_cli.run(PretrainConfig, main))
