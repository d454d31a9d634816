"""Every job is a run: what turns a function from a configuration to a report into one that MLflow sees."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from uniovseg.config import Config
from uniovseg.runtime.registry import with_files
from uniovseg.runtime.tracking import TrackingConfig, log_datasets, log_output, tracked_run
from uniovseg.storage import Location

JobT = TypeVar("JobT", bound=Config)


def tracked(kind: str) -> Callable[[Callable[[JobT], dict[str, Any]]], Callable[[JobT], dict[str, Any]]]:
    """Make a job a tracked run: `kind` says which job it is; its configuration has ``tracking`` and ``output``.

    The run is named like the output folder. It holds the configuration, the hashes of the data sets that go in and come out, the report, and whatever the
    job logs to `open_run`. Registered models that the configuration names reach the job as checkpoint folders.
    """

    def decorate(job: Callable[[JobT], dict[str, Any]]) -> Callable[[JobT], dict[str, Any]]:
        @functools.wraps(job)
        def run_job(config: JobT) -> dict[str, Any]:
            values: dict[str, Any] = dict(config)
            tracking, output = values["tracking"], Location.of(values["output"])
            assert isinstance(tracking, TrackingConfig)
            with tracked_run(tracking, output.name, config, {"job": kind}, folder=output) as run:
                log_datasets(run, config)
                report = job(with_files(config))
                log_output(run, output.uri)
                run.log_report(report)
                return report

        return run_job

    return decorate
