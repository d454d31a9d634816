"""Figures of one HTTP process for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from uniovseg.api import Timings

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGES = ("queue", "preprocess", "embed", "model", "postprocess")


class Measures:
    """Counters of requests and of where their time goes.

    Args:
        process: names the process, so that the figures of several behind one address stay apart.
    """

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, process: str) -> None:
        self.registry = CollectorRegistry()
        self._process = process
        self._requests = Counter("uniovseg_requests", "requests answered", ("process", "route", "status"), registry=self.registry)
        self._seconds = Histogram(
            "uniovseg_request_seconds", "time from a request's head to its answer", ("process", "route"), buckets=SECONDS, registry=self.registry
        )
        self._stage = Histogram(
            "uniovseg_stage_seconds", "where the time of an answer went", ("process", "stage"), buckets=SECONDS, registry=self.registry
        )
        self._under_way = Gauge("uniovseg_requests_under_way", "requests that are not answered yet", ("process",), registry=self.registry)
        self._resent = Counter("uniovseg_resent", "calls sent again because their replica died", ("process",), registry=self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is the pattern of its address, of which there are few."""
        self._requests.labels(self._process, route, str(status)).inc()
        self._seconds.labels(self._process, route).observe(seconds)

    def stages(self, timings: Timings) -> None:
        """An answer with masks was made."""
        for stage in STAGES:
            self._stage.labels(self._process, stage).observe(getattr(timings, stage) / 1000)

    def under_way(self, count: int) -> None:
        """So many requests are not answered yet."""
        self._under_way.labels(self._process).set(count)

    def resent(self) -> None:
        """A call was sent again."""
        self._resent.labels(self._process).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self.registry)
