"""One deployment for all end-to-end tests: starting it takes longer than most of them."""

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster, running_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An object store, an MLflow server and two Ray nodes."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Iterator[str]:
    """URI of the cluster's bucket, which this process can read while the module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        yield cluster.bucket
