"""Prometheus and Grafana: promtool's word where it is on the PATH, and that each figure asked for is one that is exported."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from prometheus_client import REGISTRY, generate_latest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

from tests.cluster.files import CLUSTER, load
from uniovseg.runtime.metrics import PARTS, TRAINING

MONITORING = CLUSTER / "monitoring"
RAYS_OWN_PANELS = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on the PATH (Debian's package prometheus has it)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of our figures as Ray's own exporter shows them."""
    recorder = OpenTelemetryMetricRecorder()
    for name, meaning in TRAINING.values():
        recorder.register_gauge_metric(name, meaning)
        recorder.set_metric_value(name, {"run": "a"}, 1.0)
    for name, meaning in PARTS.values():
        recorder.register_counter_metric(name, meaning)
        recorder.set_metric_value(name, {"output": "a"}, 1.0)
    lines = generate_latest(REGISTRY).decode().splitlines()
    return {line.partition("{")[0] for line in lines if line.startswith("ray_uniovseg_")}


def dashboard() -> dict[str, Any]:
    content = json.loads((MONITORING / "grafana/uniovseg.json").read_text())
    assert isinstance(content, dict)
    return content


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def alerts() -> list[dict[str, Any]]:
    (group,) = load("monitoring/alerts.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_prometheus_accepts_its_files() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "config", "prometheus.yml")


def test_the_alerts_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yml")))


def test_prometheus_understands_the_dashboards_expressions(tmp_path: Path) -> None:
    rules = [{"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_every_figure_asked_for_is_exported(exported: set[str]) -> None:
    asked = set(re.findall(r"\bray_\w+", " ".join(expressions() + [rule["expr"] for rule in alerts()])))
    rays = "".join(path.read_text() for path in RAYS_OWN_PANELS.glob("*.py"))
    assert {name for name in asked if name.startswith("ray_uniovseg_")} <= exported
    assert [name for name in asked if not name.startswith("ray_uniovseg_") and not re.search(rf"\b{name}\b", rays)] == []


def test_every_figure_exported_is_on_the_dashboard(exported: set[str]) -> None:
    text = " ".join(expressions())
    assert [name for name in exported if not re.search(rf"\b{name}\b", text)] == []


def test_grafanas_panels_have_their_own_places_and_datasource() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["datasource", "run"]


def test_the_containers_find_their_files_and_listen_to_this_machine_alone() -> None:
    services = load("monitoring/compose.yaml")["services"]
    for service in services.values():
        for source, _, mode in (volume.split(":") for volume in service["volumes"]):
            assert mode == "ro" and (source.startswith("/tmp/ray") or (MONITORING / source).exists())
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    (datasource,) = load("monitoring/grafana/datasource.yaml")["datasources"]
    assert datasource["name"] == "Prometheus" and datasource["url"] == "http://localhost:9090"
    folders = {provider["options"]["path"] for provider in load("monitoring/grafana/dashboards.yaml")["providers"]}
    mounts = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    assert all(any(mount.startswith(folder) or folder.startswith(mount) for mount in mounts) for folder in folders)


def test_the_operators_monitor_names_the_port_that_the_pods_have() -> None:
    monitor = load("monitoring/podmonitor.yaml")
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics"}]
    assert monitor["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
