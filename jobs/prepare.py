"""Prepare a data set as released for evaluation: `python jobs/prepare.py DATASET --root FOLDER`.

DATASET label_maps: masks for promptable evaluation, from FOLDER/labels (PNG or TIFF; each value but 0 is a mask) and FOLDER/images to FOLDER/instances.json.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from uniovseg.data.prepare import PREPARATIONS, prepare
from uniovseg.errors import UniOVSegError


def main(argv: Sequence[str]) -> int:
    """Prepare a set; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=PREPARATIONS, help="which")
    parser.add_argument(
        "--root", default=os.environ.get("DETECTRON2_DATASETS", "datasets"), help="folder of the sets (DETECTRON2_DATASETS, else datasets)"
    )
    given = parser.parse_args(argv)
    try:
        sys.stdout.write(f"{given.dataset}: {prepare(given.dataset, given.root)} images\n")
    except UniOVSegError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
