"""Match the masks and the entities of images: `python jobs/match.py entities=SET output=PAIRS`; look at the result with `jobs/match.py show PAIRS --n 20`."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from jobs import _cli
from uniovseg.config import CommandLine
from uniovseg.data.inspect import pictures_of_pairs
from uniovseg.errors import UniOVSegError, tell
from uniovseg.pictures import save_picture, tile
from uniovseg.runtime.match import MatchConfig, match


def main(config: MatchConfig) -> dict[str, object]:
    """Match; the report holds the counts."""
    report = match(config)
    Console().print(f"{report['pairs']} pairs of {report['entities']} entities and {report['masks']} masks in {report['images']} images")
    return report


def show(argv: Sequence[str]) -> int:
    """Draw the first pairs of a set."""
    parser = CommandLine(prog="jobs/match.py show", description="Draw the pairs of a set.")
    parser.add_argument("pairs", help="folder or URI of the pairs")
    parser.add_argument("--n", type=int, default=20, help="images drawn")
    parser.add_argument("--out", default="runs/pairs.png", help="the picture")
    try:
        arguments = parser.parse_args(argv)
        pictures = pictures_of_pairs(arguments.pairs, arguments.n)
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        save_picture(arguments.out, tile(pictures, columns=4, side=480))
    except UniOVSegError as error:
        return tell(error)
    Console().print(f"drew {len(pictures)} images: {arguments.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(show(sys.argv[2:]) if sys.argv[1:2] == ["show"] else _cli.run(MatchConfig, main))
