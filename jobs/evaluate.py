"""Evaluate a checkpoint, or predictions that lie in files.

python jobs/evaluate.py promptable benchmark=coco_instances output=FOLDER
python jobs/evaluate.py semantic|panoptic checkpoint=FOLDER benchmark=ade20k_150 output=FOLDER
python jobs/evaluate.py mask_classification annotations=FILE images=FOLDER output=FOLDER
python jobs/evaluate.py score-panoptic --gt-json F --gt-dir D --pred-json F --pred-dir D
python jobs/evaluate.py score-semantic --gt-dir D --pred-dir D --num-classes N --ignore V

A benchmark brings its own sizes and thresholds (uniovseg/evaluation/benchmark_settings.yaml; --dry-run shows them); what you give wins.
The score commands print one line of JSON: every figure a fraction, null where there is none. Each command has --help.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli, _score


def with_model(task: str) -> Callable[[Sequence[str]], int]:
    """The command line of a task that runs a model."""

    def run(argv: Sequence[str]) -> int:
        from jobs import _model_evaluation  # here, because Ray and the models take seconds that the score commands need not spend

        config_type, evaluate = _model_evaluation.TASKS[task]
        return _cli.run(config_type, evaluate, argv)

    return run


TASKS: dict[str, Callable[[Sequence[str]], int]] = {
    **{task: with_model(task) for task in ("promptable", "semantic", "panoptic", "mask_classification")},
    "score-panoptic": lambda argv: _score.print_score(_score.saved_panoptic, argv),
    "score-semantic": lambda argv: _score.print_score(_score.saved_semantic, argv),
}


def main(argv: Sequence[str]) -> int:
    """Run the evaluation that the first argument names; the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    if not argv or argv[0] not in TASKS:
        sys.stderr.write(f"error: which evaluation? seen: {argv[0] if argv else 'nothing'}; allowed: {', '.join(TASKS)}\n")
        return 2
    return TASKS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
