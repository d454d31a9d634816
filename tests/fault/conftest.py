"""One deployment for all fault tests, the run that nothing disturbs, and the table of what was survived."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SCENE
from tests.fault.deployment import Deployment
from tests.fault.training import Outcome, Training
from uniovseg.data.shapes import image_masks
from uniovseg.runtime.shards import PartRange, write_manifest, write_part
from uniovseg.storage import Location

SCENES, DISK = 24, "48m"


@dataclass
class Tally:
    """How often a fault was caused, and how often the run went on as if it had not been."""

    fault: str
    tries: int = 0
    survived: int = 0


TALLIES: list[Tally] = []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """This test's line of the table; a test without tries was skipped."""
    TALLIES.append(Tally(request.node.name.removeprefix("test_").replace("_", " ")))
    return TALLIES[-1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not TALLIES:
        return
    width = max(len(line.fault) for line in TALLIES)
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'fault':{width}}  tries  survived")
    for line in TALLIES:
        terminalreporter.write_line(f"{line.fault:{width}}  {line.tries:5}  {line.survived:8}")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A store, a tracking server and a Ray head; this process looks into the store past the proxy."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        deployed = Deployment(stack, tmp_path_factory.mktemp("faults"))
        for name, value in deployed.clear.items():
            patch.setenv(name, value)
        yield deployed


@pytest.fixture(autouse=True)
def cleared_up(deployment: Deployment) -> Iterator[None]:
    """Each test begins with an idle deployment."""
    yield
    deployment.clear_up()


@pytest.fixture(scope="module")
def training(deployment: Deployment) -> Training:
    """A training on a small set in the store."""
    shards = Location.of(deployment.bucket) / "shards"
    records = list(enumerate(image_masks(SCENE, 5, index) for index in range(SCENES)))
    part = PartRange(name="part", source="shapes", begin=0, end=SCENES)
    write_manifest(shards, [write_part(part, records, shards, 4)])
    return Training(deployment, shards.uri)


@pytest.fixture(scope="module")
def undisturbed(training: Training) -> Outcome:
    """What the training gives when nothing happens to it."""
    training.start("undisturbed").succeed()
    return training.outcome("undisturbed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, with room for some checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs a file system of its own, and this user may not mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
