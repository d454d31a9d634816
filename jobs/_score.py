"""The commands that score predictions in files: `python jobs/evaluate.py score-panoptic` and `score-semantic`. They print one line of JSON."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from uniovseg.config import CommandLine
from uniovseg.errors import UniOVSegError, tell
from uniovseg.evaluation.saved import saved_vocabulary, score_panoptic, score_semantic
from uniovseg.metrics import PanopticScore, SemanticScore


def saved_panoptic(argv: Sequence[str]) -> dict[str, Any]:
    """Panoptic quality by these command-line arguments."""
    parser = CommandLine(prog="evaluate.py score-panoptic", description="Panoptic quality of saved predictions (the rules of panopticapi).")
    parser.add_argument("--gt-json", required=True, help="ground truth, COCO panoptic JSON")
    parser.add_argument("--gt-dir", required=True, help="its PNGs")
    parser.add_argument("--pred-json", required=True, help="predictions, COCO panoptic JSON")
    parser.add_argument("--pred-dir", required=True, help="their PNGs")
    given = parser.parse_args(argv)
    scores = score_panoptic(given.gt_json, given.gt_dir, given.pred_json, given.pred_dir)
    vocabulary = saved_vocabulary(given.gt_json)
    return sum(scores, PanopticScore.zero(len(vocabulary))).summary(vocabulary)


def saved_semantic(argv: Sequence[str]) -> dict[str, Any]:
    """Mean IoU by these command-line arguments."""
    parser = CommandLine(prog="evaluate.py score-semantic", description="Mean IoU of saved label maps, over the classes of the ground truth.")
    parser.add_argument("--gt-dir", required=True, help="ground truth: PNG or TIFF of class indices, in folders at any depth")
    parser.add_argument("--pred-dir", required=True, help="predictions of the same names")
    parser.add_argument("--num-classes", required=True, type=_whole(1, 65536), help="classes are 0 to N - 1")
    parser.add_argument("--ignore", required=True, type=_whole(0, 65535), help="value of the ground truth that does not count (255, 65535)")
    given = parser.parse_args(argv)
    scores = score_semantic(given.gt_dir, given.pred_dir, given.num_classes, given.ignore)
    return sum(scores, SemanticScore.zero(given.num_classes)).summary()


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"seen: {text}; allowed: {low} to {high}")
        return int(text)

    return parse


def print_score(score: Callable[[Sequence[str]], dict[str, Any]], argv: Sequence[str]) -> int:
    """One line of JSON, or one line of error; the exit code."""
    try:
        sys.stdout.write(json.dumps(score(argv), allow_nan=False) + "\n")
    except UniOVSegError as error:
        return tell(error)
    return 0
