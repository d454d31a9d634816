"""What `ray job submit --working-dir .` sends: Ray's own zip of this checkout, and the runtime environment beside it."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.runtime_env import RuntimeEnv

from tests.cluster.files import ROOT, load


def packed(folder: Path, target: Path) -> set[str]:
    """Names of the files that Ray would send, by its ignore rules and the runtime environment's."""
    excludes = get_runtime_env_default_excludes() + load("runtime_env.yaml")["excludes"]
    create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


def test_the_zip_holds_what_git_tracks_and_no_more(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    sent = packed(ROOT, tmp_path / "checkout.zip")
    assert {"uniovseg/data/sa1b.py", "uniovseg/data/vocabularies/voc_20.json", "jobs/train.py", "jobs/configs/stage1_shapes.yaml"} <= sent
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    known = {name for name in listed.split("\0") if name and (ROOT / name).is_file() and not name.startswith(("tests/", ".github/"))}
    assert known <= sent
    assert {name for name in sent - known if not name.startswith(".git/")} == set()


def test_a_pattern_that_is_not_anchored_would_lose_the_package(tmp_path: Path) -> None:
    for name in ("uniovseg/data/sa1b.py", "data/images.tar", "runs/a/model", "uniovseg/runs/x.py"):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text("x")
    ignore = tmp_path / "checkout/.gitignore"
    ignore.write_text((ROOT / ".gitignore").read_text() + "/data/\n")
    assert packed(tmp_path / "checkout", tmp_path / "anchored.zip") == {".gitignore", "uniovseg/data/sa1b.py", "uniovseg/runs/x.py"}
    ignore.write_text("data/\n")
    assert "uniovseg/data/sa1b.py" not in packed(tmp_path / "checkout", tmp_path / "bare.zip")


def test_only_pythons_caches_are_ignored_at_any_depth() -> None:
    patterns = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    assert [pattern for pattern in patterns if not pattern.startswith("/")] == ["__pycache__/"]


def test_ray_accepts_the_runtime_environment_and_it_holds_no_secret() -> None:
    content = load("runtime_env.yaml")
    assert dict(RuntimeEnv(**content))["env_vars"] == content["env_vars"]
    assert set(content) <= {"env_vars", "excludes", "config"}
    assert not [name for name in content["env_vars"] if any(word in name for word in ("KEY", "SECRET", "TOKEN", "PASSWORD"))]
