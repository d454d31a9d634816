"""A training goes on, whatever breaks: it ends with the losses, checkpoints and MLflow run that it would have had."""

import os
import random
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.fault.conftest import Tally
from tests.fault.deployment import Deployment, Job, ResubmittedJob, fill, last_step, reported, wait, wait_until
from tests.fault.training import EVERY, STEPS, Outcome, Training, require_same

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

KILLS = int(os.environ.get("UNIOVSEG_KILLS") or 20)
AWAY = 20.0
"""Seconds that the store and the tracking server are away."""


def begun(training: Training, name: str, job: Job, steps: int = 2 * EVERY + 1) -> int:
    """Wait until a run is some steps on its way; the step."""
    output = training.output(name)
    wait_until(lambda: last_step(output) >= steps, job)
    return last_step(output)


def kill_one(deployment: Deployment, job: Job, output: str, target: int, seen: set[psutil.Process], rng: random.Random) -> None:
    """Kill one of the workers that were started since the last kill: some time after step `target`, or, one time of four, while they start."""
    new: list[psutil.Process] = []

    def started() -> bool:
        new[:] = [worker for worker in deployment.training_workers() if worker not in seen]
        return len(new) == 2

    wait_until(started, job)
    if rng.random() < 0.25:
        wait(rng.uniform(0, 5))
    else:
        wait_until(lambda: last_step(output) >= target, job)
        wait(rng.uniform(0, 0.6))
    job.require_running()
    seen.update(new)
    rng.choice(new).kill()


def test_random_kills_of_workers(deployment: Deployment, training: Training, undisturbed: Outcome, tally: Tally) -> None:
    rng = random.Random(KILLS)
    output = training.output("killed")
    targets = sorted(rng.sample(range(1, STEPS - 12), KILLS))
    seen, known = set[psutil.Process](), dict[str, datetime]()
    job = ResubmittedJob(partial(training.start, "killed", f"max_failures={2 * KILLS}", "start_minutes=60"))
    for target in targets:
        kill_one(deployment, job, output, target, seen, rng)
        known |= reported(output)
        tally.tries += 1
    job.succeed()
    assert len(known) > KILLS // 4 and known.items() <= reported(output).items()
    require_same(training.outcome("killed"), undisturbed)
    tally.survived = tally.tries


def test_the_head_killed_and_the_job_submitted_again(deployment: Deployment, training: Training, undisturbed: Outcome, tally: Tally) -> None:
    job = training.start("headless")
    begun(training, "headless", job)
    wait_until(lambda: bool(reported(training.output("headless"))), job)  # Ray knows of a checkpoint a little after it is written
    tally.tries = 1
    deployment.kill_head()
    job.forget()
    known = reported(training.output("headless"))
    assert known and f"step_{STEPS:07d}" not in known
    deployment.start_head()
    training.start("headless").succeed()
    assert known.items() <= reported(training.output("headless")).items()
    require_same(training.outcome("headless"), undisturbed)
    tally.survived = 1


def test_the_store_away(deployment: Deployment, training: Training, undisturbed: Outcome, tally: Tally) -> None:
    job = training.start("storeless", "max_failures=0")
    begun(training, "storeless", job)
    tally.tries = 1
    deployment.store_away(True)
    try:
        wait(AWAY)
        assert last_step(training.output("storeless")) < STEPS
    finally:
        deployment.store_away(False)
    job.succeed()
    require_same(training.outcome("storeless"), undisturbed)
    tally.survived = 1


def test_the_tracking_server_away(deployment: Deployment, training: Training, undisturbed: Outcome, tally: Tally) -> None:
    job = training.start("untracked", "max_failures=0")
    before = begun(training, "untracked", job)
    tally.tries = 1
    deployment.end_tracking()
    try:
        wait(AWAY)
        assert last_step(training.output("untracked")) > before  # it is not waited for
    finally:
        deployment.start_tracking()
    job.succeed()
    require_same(training.outcome("untracked"), undisturbed)
    tally.survived = 1


def test_the_disk_full_while_a_checkpoint_is_written(
    deployment: Deployment, training: Training, undisturbed: Outcome, tally: Tally, small_disk: Path
) -> None:
    job = training.start("full", "max_failures=0", f"failed_checkpoints={STEPS}", variables={"TMPDIR": str(small_disk)})
    before = begun(training, "full", job)
    tally.tries = 1
    output = training.output("full")
    wait_until(lambda: fill(small_disk).exists() and last_step(output) >= before + 3 * EVERY, job)  # checkpoints that are uploaded make room again
    (small_disk / "filler").unlink()
    job.succeed()
    found = training.outcome("full")
    lost = frozenset(range(EVERY, STEPS + 1, EVERY)) - set(found.checkpoints)
    assert lost and min(lost) > before - EVERY and STEPS not in lost
    require_same(found, undisturbed, lost)
    tally.survived = 1
