"""`ray up` files: Ray's own schema, EC2's own description of a launch (botocore), and the sizes of machines that moto knows."""

import copy
import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.model
import botocore.validate
import jsonschema
import moto.ec2
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import drain_node

from tests.cluster.files import CLUSTER, load

Change = Callable[[dict[str, Any]], object]


def check(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it reaches for the cloud."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.fixture(scope="module")
def run_instances() -> botocore.model.Shape | None:
    description = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    return botocore.model.ServiceModel(description).operation_model("RunInstances").input_shape


def wrong_words(shape: Any, value: Any) -> Iterator[str]:
    """Strings that are not among the allowed ones; botocore itself leaves this to the server."""
    if shape.type_name == "structure":
        for name, item in value.items():
            yield from wrong_words(shape.members[name], item)
    elif shape.type_name == "list":
        for item in value:
            yield from wrong_words(shape.member, item)
    elif shape.type_name == "string" and shape.enum and value not in shape.enum:
        yield value


def launch_errors(shape: Any, node_config: dict[str, Any]) -> list[str]:
    launch = {"MinCount": 1, "MaxCount": 1} | node_config
    report = botocore.validate.ParamValidator().validate(launch, shape)
    return [report.generate_report()] if report.has_errors() else list(wrong_words(shape, launch))


@pytest.fixture(scope="module")
def machines() -> dict[str, Any]:
    with gzip.open(Path(moto.ec2.__file__).parent / "resources/instance_types.json.gz") as file:
        table: dict[str, Any] = json.load(file)
    return table


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_ray_accepts_the_file(name: str) -> None:
    prepared = check(load(name))
    assert prepared["docker"]["image"] and prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(max_workerz=1),
        lambda config: config.update(max_workers="8"),
        lambda config: config["available_node_types"]["head"].update(minworkers=1),
        lambda config: config["available_node_types"]["gpu_spot"].update(resources={"GPU": "8"}),
        lambda config: config["docker"].update(images="x"),
    ],
)
def test_ray_would_see_a_wrong_key_or_type(change: Change) -> None:
    config = load("aws.yaml")
    change(config)
    with pytest.raises(jsonschema.ValidationError):
        check(config)


@pytest.mark.parametrize("node", list(load("aws.yaml")["available_node_types"]))
def test_ec2_would_accept_the_launch(node: str, run_instances: botocore.model.Shape | None) -> None:
    assert launch_errors(run_instances, load("aws.yaml")["available_node_types"][node]["node_config"]) == []


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda node: node.update(InstanceType="m7i.banana"), "m7i.banana"),
        (lambda node: node.update(InstanceTyp="m7i.large"), "InstanceTyp"),
        (lambda node: node.update(InstanceMarketOptions={"MarketType": "Spot"}), "Spot"),
        (lambda node: node["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="500"), "VolumeSize"),
    ],
)
def test_ec2_would_see_a_wrong_name_or_value(change: Change, seen: str, run_instances: botocore.model.Shape | None) -> None:
    node = copy.deepcopy(load("aws.yaml")["available_node_types"]["gpu_spot"]["node_config"])
    change(node)
    (error,) = launch_errors(run_instances, node)
    assert seen in error


def test_the_resources_are_those_of_the_machines(machines: dict[str, Any]) -> None:
    for name, node in load("aws.yaml")["available_node_types"].items():
        machine = machines[node["node_config"]["InstanceType"]]
        gpus = sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", []))
        if name == "head":
            assert node["resources"] == {"CPU": 0, "GPU": 0} and gpus == 0
        else:
            assert node["resources"] == {"CPU": machine["VCpuInfo"]["DefaultVCpus"]} | ({"GPU": gpus} if gpus else {})
        assert (node.get("docker") == {"worker_run_options": ["--gpus all"]}) == (gpus > 0)
        assert ("InstanceMarketOptions" in node["node_config"]) == name.endswith("_spot")
        if name.endswith("_spot"):
            assert "spot" in machine["SupportedUsageClasses"]


def test_the_gpu_nodes_hold_the_training_of_56() -> None:
    config = load("aws.yaml")
    nodes = config["available_node_types"]
    assert nodes["gpu_spot"]["max_workers"] * nodes["gpu_spot"]["resources"]["GPU"] == 56
    assert sum(node.get("max_workers", 0) for node in nodes.values()) == config["max_workers"]


def test_every_node_reaches_s3_and_the_head_may_start_nodes() -> None:
    config = load("aws.yaml")
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in config["available_node_types"].items()}
    assert profiles.pop("head") == "uniovseg-head" and set(profiles.values()) == {"uniovseg-node"}
    assert f"--env AWS_REGION={config['provider']['region']}" in config["docker"]["run_options"]


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_every_node_gets_the_token_and_shows_its_metrics(name: str) -> None:
    config = load(name)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, start = config[key]
        assert stop == "ray stop" and "--metrics-export-port=8080" in start and "ulimit -n 65536;" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][1]
    assert "--dashboard-host" not in config["head_start_ray_commands"][1]  # Ray's default: this machine alone, reached through ssh


def test_a_spot_node_that_ec2_takes_away_is_drained(tmp_path: Path) -> None:
    """The script as it is, with a metadata service that announces it at the second look."""
    start = load("aws.yaml")["worker_start_ray_commands"][1]
    assert "ray start" in start and start.rstrip().endswith("&") and "bash ~/uniovseg/cluster/drain_spot_node.sh" in start
    commands = {
        "sleep": "exit 0",
        "wget": f'echo "$*" >> {tmp_path}/asked; [[ $* == *PUT* ]] && echo secret && exit; [[ $(grep -c instance-action {tmp_path}/asked) == 2 ]]',
        "ray": f'printf "%s\\n" "$@" > {tmp_path}/told',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(CLUSTER / "drain_spot_node.sh")], env=environment, check=True, timeout=60)
    assert "X-aws-ec2-metadata-token: secret http://169.254.169.254/latest/meta-data/spot/instance-action" in (tmp_path / "asked").read_text()
    command, *options = (tmp_path / "told").read_text().splitlines()
    assert command == "drain-node"
    given = drain_node.make_context(command, options).params
    assert (given["reason"], given["deadline_remaining_seconds"]) == ("DRAIN_NODE_REASON_PREEMPTION", 110)
