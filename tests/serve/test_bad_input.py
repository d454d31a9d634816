"""Bad input: whatever is sent, the answer is no 5xx but 503, tells nothing of the server, and the next right request is answered."""

import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from numpy.typing import NDArray
from PIL import Image
from requests import Request
from starlette.testclient import TestClient

from serve.adapters import ROUTERS
from serve.host import Host
from tests.serve.conftest import client_of
from tests.serve.mutations import Mutations, Sent

SECRETS = (
    str(Path(__file__).parents[2]), sys.prefix, sys.base_prefix, str(Path.home()), f"{tempfile.gettempdir()}/",
    "site-packages", "Traceback", 'File "', ".py:", "object at 0x",
)  # fmt: skip
"""What no answer may hold."""

OF_REQUESTS = ("method", "url", "headers", "params", "data", "files", "json", "cookies")


def check(reply: httpx2.Response, what: object) -> None:
    """The promises about every answer."""
    assert reply.status_code < 500 or reply.status_code == 503, (what, reply.text[:500])
    if reply.headers.get("content-type", "").startswith("image/"):
        return
    for secret in SECRETS:
        assert secret not in reply.text or secret in str(what), (what, secret, reply.text[:500])
    if reply.status_code >= 400 and reply.text:
        problem = reply.json()
        assert problem["status"] == reply.status_code and problem["request_id"] == reply.headers["X-Request-ID"], (what, problem)
        assert len(reply.content) < 10_000, (what, len(reply.content))


def send(client: TestClient, sent: Sent) -> httpx2.Response:
    return client.request(
        sent.method, sent.path, headers=[(name.encode(), value.encode("latin-1")) for name, value in sent.headers.items()], content=sent.body
    )


@pytest.fixture(scope="module")
def whole(host: Host) -> Iterator[TestClient]:
    """The application with its adapters around the tiny model."""
    with client_of(host, routers=ROUTERS) as made:
        yield made


def attack(client: TestClient, host: Host, picture: NDArray[np.uint8], png: bytes, count: int, seed: int) -> Counter[int]:
    """Send mutated requests; the statuses of the answers. Raises AssertionError at the first that breaks a promise."""
    statuses: Counter[int] = Counter()
    for number, sent in enumerate(itertools.islice(Mutations(Image.fromarray(picture), "tiny", seed), count)):
        reply = send(client, sent)
        check(reply, (number, sent.what, sent.path[:200], sent.body[:300]))
        statuses[reply.status_code] += 1
    host.check()
    good = client.post("/v1/prompt", params={"points": "[[5, 6]]"}, content=png, headers={"Content-Type": "image/png"})
    assert good.status_code == 200, good.text
    return statuses


def test_mutated_requests(whole: TestClient, host: Host, picture: NDArray[np.uint8], png: bytes) -> None:
    statuses = attack(whole, host, picture, png, 300, seed=0)
    assert {200, 400, 404, 422} <= statuses.keys(), statuses


@pytest.mark.slow
def test_five_thousand_mutated_requests(whole: TestClient, host: Host, picture: NDArray[np.uint8], png: bytes) -> None:
    statuses = attack(whole, host, picture, png, 5000, seed=1)
    assert {200, 400, 404, 413, 415, 422} <= statuses.keys(), statuses


def operations(client: TestClient) -> list[Any]:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    return [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]


def probe(client: TestClient, operation: Any, mode: schemathesis.GenerationMode) -> None:
    """Requests to one route that its document allows (positive) or does not (negative)."""

    @settings(max_examples=5, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        given_ = case.as_transport_kwargs(base_url="http://testserver")
        prepared = Request(**{key: value for key, value in given_.items() if key in OF_REQUESTS}).prepare()
        body: Any = prepared.body or b""
        headers: Any = {key: value for key, value in prepared.headers.items() if key.lower() != "content-length"}
        check(client.request(str(prepared.method), str(prepared.url), headers=headers, content=body), (operation.label, body[:300]))

    ask()


def test_requests_made_from_the_openapi_document(whole: TestClient, host: Host) -> None:
    found = operations(whole)
    assert {"/v1/segment", "/v1/prompt", "/v1/everything", "/v1/images", "/v1/models", "/readyz", "/hf", "/cvat"} <= {item.path for item in found}
    for operation, mode in itertools.product(found, schemathesis.GenerationMode):
        with suppress(Unsatisfiable):  # a route without parameters cannot be asked wrongly
            probe(whole, operation, mode)
    host.check()
