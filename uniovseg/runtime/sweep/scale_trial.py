"""A trial of a scale sweep: a worker reads the matrices once and scores one scale set after another. It imports no torch."""

import sys
import time
from typing import Any

from ray import tune

from uniovseg.runtime.sweep.scale_sets import Matrices, ScaleSet, score
from uniovseg.runtime.sweep.values import with_values
from uniovseg.storage import Location


class ScaleTrial(tune.Trainable):  # type: ignore[misc]
    """Scores the scale set that its values describe; a worker is used for many."""

    def setup(self, config: dict[str, Any], matrices: str, base: ScaleSet, metric: str) -> None:
        """Read the matrices from their URI; `base` is what the values change, `metric` the figure that sets are ranked by."""
        self.matrices, self.base, self.metric = Matrices.load(Location.of(matrices)), base, metric
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's values."""
        self.chosen = with_values(self.base, new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The figures of the set; ``score`` is the one it is ranked by."""
        started = time.perf_counter()
        figures = score(self.matrices, self.chosen)
        seconds = time.perf_counter() - started
        return figures | {"score": figures[self.metric], "seconds": seconds, "torch_imported": "torch" in sys.modules, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing is kept: a trial that was cut short is scored again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""
