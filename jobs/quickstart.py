"""The whole method on the shapes world, on a laptop: data, ingest, stage 1, entities, matching, stage 2, evaluation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.runtime.quickstart import QuickstartConfig, quickstart


def main(config: QuickstartConfig) -> dict[str, object]:
    """Run everything anew in config.output."""
    folders = ("shapes", "shards", "validation", "stage1", "untrained", "entities", "pairs", "stage2")
    return quickstart(config.model_copy(update={"output": _cli.begin_anew(config.output, "quickstart", folders)}))


if __name__ == "__main__":
    sys.exit(_cli.run(QuickstartConfig, main))
