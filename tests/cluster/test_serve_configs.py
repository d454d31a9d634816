"""The Serve configurations inside the RayService manifests, against Ray's own models with unknown keys forbidden, and the language models' arguments."""

import typing
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from serve.settings import ServiceConfig
from tests.cluster.files import ROOT, SERVICES, cluster_spec, load, serve_config
from uniovseg.checkpoint import SHIPPED


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from models_in(part)


def unknown_keys(model: type[BaseModel], value: Any, path: str = "") -> list[str]:
    """Keys that a model would silently drop, at any depth."""
    if isinstance(value, list):
        return [key for number, item in enumerate(value) for key in unknown_keys(model, item, f"{path}[{number}]")]
    if not isinstance(value, dict):
        return []
    found = [f"{path}.{key}" for key in value if key not in model.model_fields]
    for key, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            found += unknown_keys(inner, value.get(key), f"{path}.{key}")
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_serve_accepts_the_configuration_and_drops_nothing(name: str) -> None:
    config = serve_config(name)
    ServeDeploySchema.model_validate(config)
    assert unknown_keys(ServeDeploySchema, config) == []


def test_a_misspelt_key_is_seen_at_every_depth() -> None:
    config = serve_config("llm.yaml")
    config["http_option"] = config["http_options"]
    config["http_options"]["prt"] = 1
    config["applications"][0]["routeprefix"] = "/"
    config["applications"][0]["deployments"] = [{"name": "M", "max_ongoing_request": 3, "ray_actor_options": {"num_gpu": 1}}]
    assert sorted(unknown_keys(ServeDeploySchema, config)) == [
        ".applications[0].deployments[0].max_ongoing_request",
        ".applications[0].deployments[0].ray_actor_options.num_gpu",
        ".applications[0].routeprefix",
        ".http_option",
        ".http_options.prt",
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_the_pods_open_the_port_that_serve_listens_on(name: str) -> None:
    port = {"name": "serve", "containerPort": serve_config(name)["http_options"]["port"]}
    for group in cluster_spec(load(name))["workerGroupSpecs"]:
        assert port in group["template"]["spec"]["containers"][0]["ports"]


def language_models() -> list[dict[str, Any]]:
    (application,) = serve_config("llm.yaml")["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app" and set(application["args"]) == {"llm_configs"}
    models: list[dict[str, Any]] = application["args"]["llm_configs"]
    return models


def test_ray_accepts_the_language_models() -> None:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig  # ray.serve.llm itself wants vLLM

    for model in language_models():
        LLMConfig.model_validate(model)
        assert unknown_keys(DeploymentSchema, model["deployment_config"]) == []


def test_they_are_those_of_the_text_stage_and_take_its_requests() -> None:
    refine = yaml.safe_load((ROOT / "jobs/configs/refine.yaml").read_text())
    served = {model["model_loading_config"]["model_id"]: model["deployment_config"]["max_ongoing_requests"] for model in language_models()}
    assert served == {refine[key]["model"]: refine[key]["concurrency"] for key in ("captioner", "llm")}


def test_one_node_has_the_gpus_for_both() -> None:
    (workers,) = cluster_spec(load("llm.yaml"))["workerGroupSpecs"]
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert workers["minReplicas"] == 1
    assert gpus == sum(model["engine_kwargs"]["tensor_parallel_size"] * model["deployment_config"]["num_replicas"] for model in language_models())


def test_the_segmenter_takes_its_arguments_and_a_replica_the_gpu_of_its_node() -> None:
    """Without arguments it would serve the packaged toy model on the CPU."""
    arguments = serve_config("kuberay-service.yaml")["applications"][0]["args"]
    config = ServiceConfig.model_validate(arguments)
    group = next(group for group in cluster_spec(load("kuberay-service.yaml"))["workerGroupSpecs"] if group["groupName"] == "gpu")
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.checkpoint not in SHIPPED
    assert (config.replica.device, config.gpus) == ("cuda", float(limits["nvidia.com/gpu"]))
    assert config.max_replicas == group["maxReplicas"]
