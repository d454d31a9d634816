"""What the tests of the runtime share: one MLflow store, as making it takes seconds."""

import pytest

from uniovseg.runtime.delivery import connect


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an SQLite store whose tables exist; its artifacts lie beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts artifacts below the working directory of whoever opens the store first
        connect(uri).search_experiments()
    return uri
