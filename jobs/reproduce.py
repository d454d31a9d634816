"""The paper's tables, ours beside the paper's figures; a row that cannot run says what is missing.

python jobs/reproduce.py --table 1|2|3|4|promptable root=FOLDER checkpoint=FOLDER     on the paper's data sets
python jobs/reproduce.py --table 3 --world shapes                                     on the shapes world: nothing is needed
python jobs/reproduce.py --noise | --cost                                             the shapes world: wrong captions; seconds and memory by scales

--seeds 0,1,2 are the worlds of the shapes world. These five are short for table=, world=, noise=true, cost=true, seeds=[0,1,2].
Without --config the settings are those of jobs/configs/reproduce.yaml.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import _cli
from uniovseg.config import CommandLine
from uniovseg.runtime.reproduce.job import ReproduceConfig, reproduce

CONFIGS = Path(__file__).parent / "configs"
DEFAULT = CONFIGS / "reproduce.yaml"
SHIPPED = ["--config", str(DEFAULT), f"shapes.match={CONFIGS / 'match_shapes.yaml'}", f"shapes.align={CONFIGS / 'stage2_shapes.yaml'}"]
"""The shipped settings, from whichever folder they are asked for."""


def main(config: ReproduceConfig) -> dict[str, object]:
    """Run what is asked."""
    return reproduce(config)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line in the form that all jobs take."""
    parser = CommandLine(add_help=False, allow_abbrev=False)
    for name in ("table", "world", "seeds", "config"):
        parser.add_argument(f"--{name}")
    for name in ("noise", "cost"):
        parser.add_argument(f"--{name}", action="store_true")
    given, rest = parser.parse_known_args(argv)
    overrides = [f"{name}={value}" for name in ("table", "world") if (value := getattr(given, name)) is not None]
    overrides += [f"{name}=true" for name in ("noise", "cost") if getattr(given, name)]
    if given.seeds is not None:
        overrides.append(f"seeds=[{given.seeds}]")
    return [*(["--config", given.config] if given.config else SHIPPED), *overrides, *rest]


if __name__ == "__main__":
    sys.exit(_cli.run(ReproduceConfig, main, arguments=arguments))
