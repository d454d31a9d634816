"""The figures that `uniovseg.runtime.plan` reckons with, from ``costs.csv``: one a line, with its unit, its kind and its source.

Kinds: *measured* here or in the trials behind this repository; *published* by a paper or a maker; *derived* from such figures; *assumed* by us. Replace an
assumption by a measurement in a copy of the file, and name it by ``--costs``.
"""

import csv
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from uniovseg.config import nearest
from uniovseg.errors import ConfigError

KINDS = ("measured", "published", "derived", "assumed")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its name, the GPU that it is of (empty: any), value, unit, kind (one of `KINDS`) and source."""

    name: str
    gpu: str
    value: float
    unit: str
    kind: str
    source: str


class Costs:
    """The figures for one GPU; it remembers which were used.

    Args:
        figures: all figures, of any GPU.
        gpu: such as v100.

    Raises:
        ConfigError: there is no figure of this GPU.
    """

    def __init__(self, figures: list[Figure], gpu: str) -> None:
        known = sorted({figure.gpu for figure in figures} - {""})
        if gpu not in known:
            raise ConfigError(
                f"no figures of this GPU{nearest(gpu, known)}", seen=gpu, allowed=", ".join(known), fix="add its lines to a copy: --costs"
            )
        self.gpu = gpu
        self._figures = {(figure.name, figure.gpu): figure for figure in figures}
        self._used: dict[tuple[str, str], Figure] = {}

    def __call__(self, name: str, gpu: str | None = None) -> float:
        """The value of a figure: that of `gpu` (default: this object's), else that of any GPU. Raises ConfigError when there is none."""
        for key in ((name, self.gpu if gpu is None else gpu), (name, "")):
            if key in self._figures:
                self._used[key] = self._figures[key]
                return self._figures[key].value
        raise ConfigError("a figure is missing from the costs", seen=f"{name}, {gpu or self.gpu}", fix="add its line")

    def has(self, name: str) -> bool:
        """Whether there is a figure of this name for this GPU or any."""
        return (name, self.gpu) in self._figures or (name, "") in self._figures

    @property
    def used(self) -> list[Figure]:
        """The figures that were asked for, in the order of the first time."""
        return list(self._used.values())


def read_figures(path: Path | None = None) -> list[Figure]:
    """The figures of a file, or the packaged ones. Raises ConfigError for a file or line that cannot be read."""
    try:
        text = (resources.files("uniovseg.runtime") / "costs.csv").read_text() if path is None else path.read_text()
    except OSError as error:
        raise ConfigError("the costs cannot be read", seen=path, fix=str(error.strerror)) from error
    figures = []
    for row in csv.DictReader(text.splitlines()):
        try:
            figure = Figure(row["name"], row["gpu"], float(row["value"]), row["unit"], row["kind"], row["source"])
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError("a line of the costs cannot be read", seen=row, allowed="name,gpu,value,unit,kind,source") from error
        if figure.kind not in KINDS or not figure.source:
            raise ConfigError("a figure has no kind and source", seen=row, allowed=f"kind one of {', '.join(KINDS)}")
        figures.append(figure)
    return figures
