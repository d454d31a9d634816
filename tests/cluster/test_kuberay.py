"""KubeRay manifests: the operator's own schemas where they are at hand, and what no schema knows: resource names, memory, versions."""

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray._private import ray_constants

from tests.cluster.files import CLUSTER_SPEC, MANIFESTS, cluster_spec, groups, load

PLURALS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
UNITS = {"Mi": 2**20, "Gi": 2**30}


def closed(schema: Any) -> Any:
    """The schema with unknown keys forbidden, as a strict API server does, and with Kubernetes' numbers-or-strings in JSON schema's words."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    folder = os.environ.get("KUBERAY_CRD_DIR")
    if not folder:
        pytest.skip("KUBERAY_CRD_DIR is not set: a folder with KubeRay's ray.io_*.yaml (ray-operator/config/crd/bases)")
    found = {}
    for kind, plural in PLURALS.items():
        definition = yaml.load((Path(folder) / f"ray.io_{plural}.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = schema
    return found


def errors(schemas: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schemas[manifest["kind"]]).iter_errors(manifest)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_operator_accepts_the_manifest(name: str, schemas: dict[str, Any]) -> None:
    assert errors(schemas, load(name)) == []


def test_the_operator_would_see_a_wrong_key_or_value(schemas: dict[str, Any]) -> None:
    manifest = load("kuberay-cluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    manifest["spec"]["authOptions"]["mode"] = "tokens"
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["container"] = []
    assert [error.partition(":")[0] for error in errors(schemas, manifest)] == [
        "$.spec.authOptions.mode",
        "$.spec.headGroupSpec.template.spec",
        "$.spec.workerGroupSpecs[0]",
    ]


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)?", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS.get(unit, 1)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_pods_ask_for_what_nodes_have(name: str) -> None:
    for group in groups(load(name)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert set(limits) <= {"cpu", "memory", "nvidia.com/gpu"} and set(requests) == set(limits)
        assert all(isinstance(value, str) and amount(requests[key]) <= amount(value) for key, value in limits.items())
        assert requests["memory"] == limits["memory"]
        gpu = "nvidia.com/gpu" in limits
        assert gpu == any(toleration["key"] == "nvidia.com/gpu" for toleration in pod.get("tolerations", []))
        assert gpu == (group.get("groupName") == "gpu")


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_shared_memory_holds_rays_object_store(name: str) -> None:
    for group in cluster_spec(load(name))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        assert set(mounts.values()) == set(volumes)
        shared = volumes[mounts["/dev/shm"]]
        assert shared["medium"] == "Memory"
        memory = amount(container["resources"]["limits"]["memory"])
        assert 0.3 * memory <= amount(shared["sizeLimit"]) <= 0.5 * memory


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_cluster_is_of_this_ray_asks_for_the_token_and_keeps_its_head_free(name: str) -> None:
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1" and manifest["kind"] in CLUSTER_SPEC
    spec = cluster_spec(manifest)
    assert spec["rayVersion"] == ray.__version__ and spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in groups(manifest):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["serviceAccountName"] == "uniovseg"
        assert {"name": "metrics", "containerPort": 8080} in pod["containers"][0]["ports"]
        assert [next(iter(source.values()))["name"] for source in pod["containers"][0]["envFrom"]] == ["uniovseg", "uniovseg"]


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_a_pod_that_goes_leaves_a_training_the_time_for_a_checkpoint(name: str) -> None:
    """Ray drains a node whose pod is ended, by which the training knows; 10 seconds are left to end."""
    for group in cluster_spec(load(name))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (draining,) = (item["value"] for item in pod["containers"][0]["env"] if item["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
        assert 60 <= int(draining) <= pod["terminationGracePeriodSeconds"] - 10
    assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")


def test_the_job_runs_a_file_that_is_there_on_as_many_gpus_as_it_wants() -> None:
    manifest = load("kuberay-job.yaml")
    words = manifest["spec"]["entrypoint"].split()
    root = Path(__file__).parents[2]
    assert words[0] == "python" and words[2] == "--config" and (root / words[1]).is_file()
    config = yaml.safe_load((root / words[3]).read_text())
    (workers,) = cluster_spec(manifest)["workerGroupSpecs"]
    container = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert workers["maxReplicas"] * int(container["nvidia.com/gpu"]) == config["workers"] * config["gpus_per_worker"]
    assert int(container["cpu"]) >= int(container["nvidia.com/gpu"]) * (config["cpus_per_worker"] + 1.5)
