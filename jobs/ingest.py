"""Turn SA-1B tars, COCO panoptic or COCO instances into a shard set."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from jobs import _cli
from uniovseg.runtime.ingest import IngestConfig, ingest


def main(config: IngestConfig) -> dict[str, object]:
    """Ingest; the report holds the counts."""
    report = ingest(config)
    Console().print(f"{report['samples']} samples with {report['masks']} masks kept, {report['rejected']} rejected {report['rejects'] or ''}")
    return report


if __name__ == "__main__":
    sys.exit(_cli.run(IngestConfig, main))
