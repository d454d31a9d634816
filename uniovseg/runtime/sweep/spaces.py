"""Search spaces as a YAML file writes them, and as Ray Tune samples them."""

import json
import math
from typing import Any, Self

from pydantic import Field, model_validator
from ray import tune

from uniovseg.config import Config, nearest
from uniovseg.evaluation.mask_classification import subsets

LISTS, RANGES = ("choice", "grid", "subsets"), ("uniform", "log_uniform")


class Space(Config):
    """What one key may be: a mapping with one of these keys, such as ``{log_uniform: [0.1, 10]}``."""

    choice: tuple[Any, ...] | None = Field(None, description="values, one drawn")
    grid: tuple[Any, ...] | None = Field(None, description="values, each tried by a grid search")
    subsets: tuple[Any, ...] | None = Field(None, description="items, each of whose subsets of at least one is a value")
    uniform: tuple[float, float] | None = Field(None, description="lowest and highest")
    log_uniform: tuple[float, float] | None = Field(None, description="lowest and highest, above 0; the logarithm is uniform")

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        allowed = f"a mapping with one of {', '.join(cls.model_fields)}"
        if not isinstance(value, dict):
            raise ValueError(f"not {allowed}")
        if strange := [str(kind) for kind in value if kind not in cls.model_fields]:
            raise ValueError(f"not {allowed}{nearest(strange[0], cls.model_fields)}")
        given = {kind: item for kind, item in value.items() if item is not None}
        if len(given) != 1:
            raise ValueError(f"not {allowed}")
        return given

    @model_validator(mode="after")
    def _values(self) -> Self:
        if (bounds := self.uniform or self.log_uniform) is not None and not bounds[0] < bounds[1]:
            raise ValueError("the lowest value is not below the highest")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("the lowest value of log_uniform is not above 0")
        if (listed := self.choice or self.grid or self.subsets or ()) and len({json.dumps(item) for item in listed}) < len(listed):
            raise ValueError("a value is given twice")
        if not bounds and not listed:
            raise ValueError("no value is given")
        return self

    @property
    def listed(self) -> list[Any] | None:
        """The values as Tune, TensorBoard and MLflow take them, lists as JSON; None for a range."""
        values: tuple[Any, ...] | None = self.choice or self.grid
        if self.subsets:
            values = tuple(subsets(self.subsets))
        return None if values is None else [json.dumps(value) if isinstance(value, list | tuple | dict) else value for value in values]

    @property
    def samples(self) -> list[Any]:
        """All values of a list, of a range the ends and one between: what must be valid for the key, which for a whole number no range is."""
        if bounds := self.uniform or self.log_uniform:
            return [*bounds, bounds[0] + (bounds[1] - bounds[0]) / math.e]
        return self.listed or []

    def sampled(self) -> Any:
        """A distribution of Tune's: any of the listed values, or one of the range."""
        if self.listed is not None:
            return tune.choice(self.listed)
        return tune.loguniform(*self.log_uniform) if self.log_uniform else tune.uniform(*(self.uniform or ()))
