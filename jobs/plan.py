"""What a run takes on paper: `python jobs/plan.py --config jobs/configs/stage1_sa1b.yaml --gpus 1 8 56 256 --gpu h200`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from rich.console import Console

from jobs import _cli
from uniovseg.config import CommandLine, load
from uniovseg.errors import ConfigError, UniOVSegError, tell
from uniovseg.runtime.costs import Costs, read_figures
from uniovseg.runtime.model_size import model_size
from uniovseg.runtime.plan import data_facts, estimates_table, figures_table, plan_text, plan_training
from uniovseg.runtime.refine import RefineConfig
from uniovseg.runtime.train import TrainJobConfig


def parser() -> CommandLine:
    """The command line."""
    root = CommandLine(description=__doc__)
    root.add_argument("--config", required=True, type=_cli.config_file, help="YAML file of jobs/train.py or jobs/refine.py")
    root.add_argument("--gpus", type=int, nargs="+", default=[56], help="GPUs of the cluster; several: a column each")
    root.add_argument("--gpu", default="h200", help="kind of GPU that the costs have figures of, such as v100 or h200")
    root.add_argument("--costs", type=Path, help="a file of figures instead of the packaged uniovseg/runtime/costs.csv")
    root.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value", help="change of a single key (repeat for more)")
    return root


def is_training(path: str) -> bool:
    """Whether the file is a training's: it names a method."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("the configuration file cannot be read", seen=path, fix=" ".join(str(error).split())) from error
    return isinstance(values, dict) and "method" in values


def plan(arguments: argparse.Namespace, console: Console) -> None:
    """Print the estimates, where the data's figures are from, and all figures that were used."""
    costs = Costs(read_figures(arguments.costs), arguments.gpu)
    if is_training(arguments.config):
        config = load(TrainJobConfig, arguments.config, arguments.overrides)
        data, size = data_facts(config.data.train, costs), model_size(config.method)
        estimates = [plan_training(config, gpus, costs, data, size) for gpus in arguments.gpus]
        note = f"bytes of an image and rows of a row group: from {data.source}"
    else:
        text = load(RefineConfig, arguments.config, arguments.overrides)
        estimates = [plan_text(text, gpus, costs) for gpus in arguments.gpus]
        note = "the memory of the models' servers is their own matter"
    console.print(estimates_table(estimates, f"{arguments.config} on {arguments.gpu}"))
    console.print(note, soft_wrap=True)
    console.print(figures_table(costs.used))


def main(argv: Sequence[str] | None = None) -> int:
    """2 for a wrong call or configuration, 1 for another failure."""
    try:
        plan(parser().parse_args(argv), Console())
    except UniOVSegError as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
