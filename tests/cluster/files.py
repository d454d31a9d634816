"""The files of cluster/, as the tests read them."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = ("kuberay-cluster.yaml", "kuberay-job.yaml", "kuberay-service.yaml", "llm.yaml")
SERVICES = ("kuberay-service.yaml", "llm.yaml")
CLUSTER_SPEC = {"RayCluster": "spec", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


def load(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTER / name).read_text())
    assert isinstance(content, dict)
    return content


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The specification of the Ray cluster inside a manifest of any of the three kinds."""
    key = CLUSTER_SPEC[manifest["kind"]]
    spec: dict[str, Any] = manifest["spec"] if key == "spec" else manifest["spec"][key]
    return spec


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The head group and the worker groups."""
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def serve_config(name: str) -> dict[str, Any]:
    """The Serve configuration inside a RayService."""
    config = yaml.safe_load(load(name)["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config
