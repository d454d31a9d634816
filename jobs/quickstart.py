"""The whole method on the shapes world, on a laptop: data, ingest, stage 1, entities, matching, stage 2, evaluation."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.quickstart import QuickstartConfig, quickstart


def main(config: QuickstartConfig) -> dict[str, object]:
    """Run everything anew in config.output."""
    for name in ("shapes", "shards", "stage1", "untrained", "entities", "pairs", "stage2"):
        shutil.rmtree(Path(config.output) / name, ignore_errors=True)
    return quickstart(config)


if __name__ == "__main__":
    sys.exit(_cli.run(QuickstartConfig, main))
