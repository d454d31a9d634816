"""The errors a user can cause or mend: one tree, one message shape (what failed, seen, allowed, what to do)."""

import sys


class UniOVSegError(Exception):
    """Base of every error that uniovseg raises on purpose.

    Args:
        what: what failed, in the user's words.
        seen: the value that was found, if there is one.
        allowed: what would have been accepted.
        fix: what the user can do about it.

    The parts are joined into one line, so the error reads the same on a terminal, in a log and in a report.
    """

    def __init__(self, what: str, *, seen: object = None, allowed: object = None, fix: str | None = None) -> None:
        parts = [what]
        if seen is not None:
            parts.append(f"seen: {seen!s}")
        if allowed is not None:
            parts.append(f"allowed: {allowed!s}")
        if fix is not None:
            parts.append(fix)
        super().__init__("; ".join(parts))


class ConfigError(UniOVSegError):
    """A configuration file, key, value or command line that cannot be used."""


def tell(error: UniOVSegError) -> int:
    """Write the error to standard error, in one line; the code that a command exits with: 2 for a wrong command line or configuration, else 1."""
    sys.stderr.write(f"error: {error}\n")
    return 2 if isinstance(error, ConfigError) else 1


class DataError(UniOVSegError):
    """Input data (an image, a mask, a shard, an annotation file) that cannot be read as what it claims to be."""


class CheckpointError(UniOVSegError):
    """A checkpoint that is missing, incomplete, or does not fit the model or the run."""


class StorageError(UniOVSegError):
    """A path or URI that cannot be read or written."""


class MissingFileError(StorageError):
    """A file that is not there."""


class TrainingError(UniOVSegError):
    """A training run that must stop: a loss that is not finite, an impossible plan."""


class DeviceMemoryError(TrainingError):
    """A step that the device's memory does not hold."""


class TrainingStoppedError(TrainingError):
    """A training run that was asked to stop, and has kept a checkpoint to go on from."""


class EndpointError(UniOVSegError):
    """A language model's endpoint that does not answer, or refuses whatever it is asked."""
