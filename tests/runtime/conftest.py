"""What the tests of the runtime share: one Ray cluster on this machine and one MLflow store, as starting either takes seconds."""

import os
from collections.abc import Iterator

import pytest

from uniovseg.runtime.delivery import connect
from uniovseg.runtime.session import ray_session


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of five CPU slots, what two workers and their feeds take; `ray_session` inside a test joins it."""
    if os.environ.get("RAY_ADDRESS"):
        pytest.fail("RAY_ADDRESS is set: these tests want a cluster of their own")
    with ray_session(5):
        yield


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an SQLite store whose tables exist; its artifacts lie beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts artifacts below the working directory of whoever opens the store first
        connect(uri).search_experiments()
    return uri
