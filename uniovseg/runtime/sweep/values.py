"""A trial's values, as Ray Tune holds them: by dotted key, lists as JSON; and what configuration they make."""

import json
from collections.abc import Mapping
from typing import Any

from uniovseg.config import ConfigT, merge, parse_overrides, validate


def with_values(base: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """`base` with a trial's values laid over it, as overrides on a command line would be. Raises ConfigError for a wrong key or value."""
    overrides = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return validate(type(base), merge(base.model_dump(mode="json"), parse_overrides(overrides)))
