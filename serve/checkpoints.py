"""Where a served checkpoint may lie: what `uniovseg.checkpoint` opens, and MLflow's model registry."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniovseg import checkpoint
from uniovseg.errors import CheckpointError

REGISTRY = "models:/"


@contextmanager
def opened_checkpoint(uri: str) -> Iterator[Path]:
    """A checkpoint as a local folder.

    Args:
        uri: a folder, an s3:// URI, ``shapes``, or ``models:/name/version`` or ``models:/name@alias`` of the registry that MLFLOW_TRACKING_URI names; its
            artifacts hold one checkpoint folder.

    Raises:
        CheckpointError: the registry has no such model, or it holds no checkpoint.
    """
    if not uri.startswith(REGISTRY):
        with checkpoint.opened(uri) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder_name:
        yield _downloaded(uri, Path(folder_name))


def _downloaded(uri: str, folder: Path) -> Path:
    import mlflow  # seconds to import, and only this way leads to it

    try:
        mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise CheckpointError(
            "the registry has no such model", seen=uri, allowed="models:/name/version, models:/name@alias",
            fix=f"MLFLOW_TRACKING_URI is {os.environ.get('MLFLOW_TRACKING_URI', 'not set')}",
        ) from error  # fmt: skip
    found = sorted(folder.rglob(checkpoint.MANIFEST))
    if len(found) != 1:
        raise CheckpointError("the registered model does not hold one checkpoint", seen=f"{uri}: {len(found)}", allowed=f"one {checkpoint.MANIFEST}")
    return found[0].parent
