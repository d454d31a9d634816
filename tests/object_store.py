"""A real object store for the tests, with and without a faulty network before it. moto stays for the quick ones: it takes any credentials."""

import uuid
from collections.abc import Iterator

import boto3
import pytest

from uniovseg.benchmarks.fault_proxy import FaultProxy
from uniovseg.benchmarks.object_store import ObjectStore

SECRET = "marked-secret-0f6d2c"
"""The store's secret key; no log, manifest or parameter may hold it."""


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """OpenStack Swift with its S3 interface, as processes on this machine."""
    store = ObjectStore(tmp_path_factory.mktemp("object_store"), SECRET)
    yield store
    store.close()


@pytest.fixture
def fault_proxy(object_store: ObjectStore) -> Iterator[FaultProxy]:
    """A proxy before the store, in fair weather at first."""
    proxy = FaultProxy(object_store.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def store_bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket in the store, with the environment that leads to it."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return make_bucket(object_store)


def make_bucket(store: ObjectStore, name: str | None = None) -> str:
    """The URI of a new bucket."""
    session = boto3.session.Session(store.access_key, store.secret_key, region_name="us-east-1")
    name = name or f"bucket-{uuid.uuid4().hex[:8]}"
    session.client("s3", endpoint_url=store.endpoint).create_bucket(Bucket=name)
    return f"s3://{name}"
