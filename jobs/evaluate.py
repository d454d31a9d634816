"""Evaluate a checkpoint: `python jobs/evaluate.py promptable annotations=FILE images=FOLDER`."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from jobs import _cli
from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job

TASKS = ("promptable",)


def promptable(config: PromptableJobConfig) -> dict[str, object]:
    """1-point and 1-box IoU of a checkpoint on a labelled set."""
    report = evaluate_promptable_job(config)
    table = Table(title=f"promptable: {config.checkpoint} on {config.annotations}")
    for name, value in report["promptable"].items():
        table.add_row(name, f"{value:.4f}" if name.endswith("iou") else f"{value:.0f}")
    Console().print(table)
    return report


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in TASKS:
        sys.stderr.write(f"error: which evaluation? seen: {argv[0] if argv else 'nothing'}; allowed: {', '.join(TASKS)}\n")
        return 2
    return _cli.run(PromptableJobConfig, promptable, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
