"""Prepare a data set as released for evaluation: `python jobs/prepare.py DATASET --root FOLDER`.

DATASET label_maps: masks for promptable evaluation, from FOLDER/labels (PNG or TIFF; each value but 0 is a mask) and FOLDER/images to FOLDER/instances.json.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from uniovseg.config import CommandLine
from uniovseg.data.prepare import PREPARATIONS, prepare
from uniovseg.errors import UniOVSegError, tell


def main(argv: Sequence[str]) -> int:
    """Prepare a set; the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("dataset", choices=PREPARATIONS, help="which")
    parser.add_argument(
        "--root", default=os.environ.get("DETECTRON2_DATASETS", "datasets"), help="folder of the sets (DETECTRON2_DATASETS, else datasets)"
    )
    try:
        given = parser.parse_args(argv)
        sys.stdout.write(f"{given.dataset}: {prepare(given.dataset, given.root)} images\n")
    except UniOVSegError as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
