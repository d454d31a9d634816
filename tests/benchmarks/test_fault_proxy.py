"""The proxy before a small server: what each fault looks like to a client, and that the draw is one."""

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from uniovseg.benchmarks.fault_proxy import FAULTS, FaultProxy, Weather

BODY = bytes(range(256)) * 4096
"""1 MiB."""


class Store(http.server.BaseHTTPRequestHandler):
    """Answers GET with `BODY` and PUT with what was put."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(BODY)

    def do_HEAD(self) -> None:
        self._send(BODY)

    def do_PUT(self) -> None:
        self._send(self.rfile.read(int(self.headers["Content-Length"])))

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(store: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(store)
    yield proxy
    proxy.close()


def ask(proxy: FaultProxy, method: str = "GET", path: str = "/a", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def outcome(proxy: FaultProxy, path: str) -> str:
    try:
        return str(ask(proxy, path=path)[0])
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def test_in_fair_weather_everything_passes(proxy: FaultProxy) -> None:
    assert ask(proxy) == (200, BODY)
    assert ask(proxy, "PUT", body=BODY[1:]) == (200, BODY[1:])
    assert ask(proxy, "HEAD") == (200, b"")
    assert proxy.counts() == {"requests": 3}


@pytest.mark.parametrize(("fault", "code"), [("500", b"InternalError"), ("503", b"SlowDown")])
def test_errors_are_s3_s(proxy: FaultProxy, fault: str, code: bytes) -> None:
    proxy.set(Weather(share=1, faults=(fault,)))
    status, body = ask(proxy)
    assert status == int(fault) and b"<Code>" + code in body
    assert proxy.counts() == {"requests": 1, fault: 1}


def test_a_cut_answer_promises_more_than_it_holds(proxy: FaultProxy) -> None:
    proxy.set(Weather(share=1, faults=("cut",)))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == BODY[: len(BODY) // 2]


def test_a_reset_connection_gives_nothing(proxy: FaultProxy) -> None:
    proxy.set(Weather(share=1, faults=("reset",)))
    for number in range(8):  # some before, some after the store was asked
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(proxy, path=f"/{number}")


def test_delays_and_latency_make_late(proxy: FaultProxy) -> None:
    for weather in (Weather(share=1, faults=("delay",), delay=0.2), Weather(latency=0.2)):
        proxy.set(weather)
        since = time.monotonic()
        assert ask(proxy) == (200, BODY)
        assert time.monotonic() - since >= 0.2


def test_a_store_that_is_away_comes_back_at_the_same_place(proxy: FaultProxy) -> None:
    assert ask(proxy) == (200, BODY)
    proxy.set(Weather(away=True))
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    proxy.set(Weather())
    assert ask(proxy) == (200, BODY)


def test_the_same_requests_have_the_same_fate(store: str) -> None:
    paths = [f"/{number % 50}" for number in range(150)]
    fates = []
    for seed, order in ((0, 1), (0, -1), (1, 1)):
        proxy = FaultProxy(store, Weather(share=0.3, faults=("503", "reset", "cut"), seed=seed))
        fates.append(sorted((path, outcome(proxy, path)) for path in paths[::order]))
        counts = proxy.counts()
        proxy.close()
        assert counts["requests"] == 150 and 25 < sum(counts.get(fault, 0) for fault in FAULTS) < 65
    assert fates[0] == fates[1] != fates[2]


def test_it_ends_with_the_one_that_started_it(store: str) -> None:
    proxy = FaultProxy(store)
    proxy.close()
    assert proxy._process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
