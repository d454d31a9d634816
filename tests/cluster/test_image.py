"""The image: its versions are the tested ones, its user is not root, its files are there, and every file of cluster/ names it alike."""

import importlib.metadata
import re
import tomllib

import pytest

from tests.cluster.files import CLUSTER, MANIFESTS, ROOT, groups, load
from uniovseg.runtime import provenance

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_the_image_has_the_tested_torch(package: str) -> None:
    assert f"{package}=={importlib.metadata.version(package).partition('+')[0]}" in STAGES["platform"]
    assert not re.search(rf"^{package}==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_rest_is_pinned_and_ray_is_the_same_everywhere() -> None:
    assert "pip install --constraint constraints.txt --editable" in STAGES["platform"]
    version = importlib.metadata.version("ray")
    assert re.findall(r"ray\[[^]]*\]==([\d.]+)", DOCKERFILE) == [version]
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()
    python = re.search(r"FROM python:(\d+\.\d+)-", DOCKERFILE)
    assert python and f">={python[1]}" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]


def test_the_packages_are_there_when_they_are_installed() -> None:
    before, _, _ = STAGES["platform"].partition("--editable")
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(f"COPY {name.rstrip('*')}/__init__.py {name.rstrip('*')}/\n" in before for name in found)


def test_the_image_and_a_working_directory_say_which_code_they_are() -> None:
    """By the variables that provenance reads; a working directory does not take over those of the image."""
    assert "--build-arg UNIOVSEG_GIT_COMMIT=$(git rev-parse HEAD)" in DOCKERFILE
    for name in (provenance.COMMIT, provenance.DIRTY):
        assert re.search(rf'^ARG .*\b{name}=""', STAGES["platform"], re.MULTILINE)
        assert re.search(rf"^ENV .*\b{name}=\${{{name}}}", STAGES["platform"], re.MULTILINE)
        assert load("runtime_env.yaml")["env_vars"][name] == ""


@pytest.mark.parametrize("stage", ["platform", "llm"])
def test_the_user_is_not_root(stage: str) -> None:
    assert re.findall(r"^USER (.*)$", STAGES[stage], re.MULTILINE) == ["1000"]  # a number: Kubernetes cannot tell that a name is not root
    assert STAGES[stage].rstrip().endswith("USER 1000") and "useradd --uid 1000" in STAGES["node"]


def test_a_bare_job_starts_in_the_repository() -> None:
    assert re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE) == ["/home/ray/uniovseg"]
    assert "COPY --chown=ray:ray . ." in STAGES["platform"]
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored) and not {"data", "uniovseg", "jobs", "**/data"} & set(ignored)


def test_what_the_image_copies_is_there() -> None:
    for sources in re.findall(r"^COPY (?:--\S+ )*(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_every_file_names_the_image_by_the_packages_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    platform, llm = f"registry.example.com/uniovseg:{version}", f"registry.example.com/uniovseg-llm:{version}"
    assert {load(name)["docker"]["image"] for name in ("aws.yaml", "local.yaml")} == {platform}
    for name in MANIFESTS:
        images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(load(name))}
        assert images == {llm if name == "llm.yaml" else platform}
    assert f"-t {platform} ." in DOCKERFILE and f"-t {llm} ." in DOCKERFILE


def test_the_readme_says_of_each_file_whom_it_is_for() -> None:
    table = (CLUSTER / "README.md").read_text()
    files = [
        str(path.relative_to(CLUSTER)) for path in CLUSTER.rglob("*") if path.is_file() and path.name not in ("README.md", "Dockerfile.dockerignore")
    ]
    assert [name for name in files if f"| `{name}` |" not in table] == []
