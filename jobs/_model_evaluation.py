"""Evaluate a checkpoint on a labelled set (`python jobs/evaluate.py TASK`)."""

from rich.console import Console
from rich.table import Table

from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job


def promptable(config: PromptableJobConfig) -> dict[str, object]:
    """1-point and 1-box IoU of a checkpoint on a labelled set."""
    report = evaluate_promptable_job(config)
    table = Table(title=f"promptable: {config.checkpoint} on {config.annotations}")
    for name, value in report["promptable"].items():
        table.add_row(name, f"{value:.4f}" if name.endswith("iou") else f"{value:.0f}")
    Console().print(table)
    return report
