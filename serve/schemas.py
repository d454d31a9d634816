"""The HTTP contract, which the client shares: see `uniovseg.api`."""

from uniovseg.api import *  # noqa: F403
