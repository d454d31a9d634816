"""The application on Ray Serve, with the packaged model: it answers right, and goes on answering when a replica dies or the model is swapped."""

import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve.app import build
from serve.settings import ModelSource, ServiceConfig
from tests.cluster.files import ROOT
from tests.cluster.test_serve_configs import unknown_keys
from tests.serve.conftest import encoded
from tests.serve.mutations import Mutations
from uniovseg.data.shapes import CLASS_NAMES, Scene, SceneConfig, draw_scene, scene_rng

SECONDS = 280.0
"""Patience with a busy machine; nothing here is timed."""


def test_the_declaration_is_one_that_serve_and_we_understand() -> None:
    config = yaml.safe_load((ROOT / "serve/service.yaml").read_text())
    ServeDeploySchema.model_validate(config)
    assert unknown_keys(ServeDeploySchema, config) == []
    (application,) = config["applications"]
    settings = ServiceConfig.model_validate(application["args"])
    assert settings.drain_seconds > settings.limits.seconds < config["http_options"]["request_timeout_s"]
    assert settings.limits == ServiceConfig().limits and settings.replica == ServiceConfig().replica
    (model,) = application["deployments"]
    assert ModelSource.model_validate(model["user_config"]) == ServiceConfig().source
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(SceneConfig(size=128, min_objects=2, max_objects=3, min_extent=0.25), scene_rng(7, 1, 9), held_out=False)


def deploy(port: int, name: str) -> None:
    """What `serve deploy` does, and wait until it is done. The model's name is all that ever changes."""
    settings = {"cpus": 0.5, "replica": {"decoders": 1}, "limits": {"seconds": SECONDS}, "drain_seconds": SECONDS}
    model = {"name": "Segmenter", "user_config": ModelSource(name=name).model_dump()}
    application = {"name": "uniovseg", "route_prefix": "/", "import_path": "serve.app:build", "args": settings, "deployments": [model]}
    serve.context._get_global_client().deploy_apps(
        ServeDeploySchema.model_validate({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
    )
    while (status := serve.status().applications["uniovseg"]).status != "RUNNING":
        assert status.status != "DEPLOY_FAILED", status.message
        threading.Event().wait(0.2)


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture(scope="module")
def url(ray_cluster: None, port: int) -> Iterator[str]:
    """The address of a running service."""
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(port, "uniovseg")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=SECONDS) as made:
        yield made


def iou(segment: dict[str, Any], mask: NDArray[np.bool_]) -> float:
    found = coco_mask.decode(segment["mask"]).astype(bool)
    return float((found & mask).sum() / (found | mask).sum())


def middle(mask: NDArray[np.bool_]) -> list[float]:
    """The centre [x, y] of the pixel that is deepest inside."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return [float(x) + 0.5, float(y) + 0.5]


def post(client: httpx2.Client, path: str, request: dict[str, Any], image: bytes) -> Any:
    return client.post(path, files={"image": ("i.png", image, "image/png")}, data={"request": json.dumps(request)})


@pytest.mark.cluster
def test_a_word_covers_its_shape_and_a_click_gives_its_mask(client: httpx2.Client, scene: Scene) -> None:
    names = [CLASS_NAMES[item.class_index] for item in scene.objects] + [CLASS_NAMES[index] for index, _ in scene.grounds]
    image, shape = encoded(scene.image), scene.objects[0]
    answer = post(client, "/v1/segment", {"vocabulary": list(dict.fromkeys(names))}, image)
    assert answer.status_code == 200, answer.text
    named = [segment for segment in answer.json()["segments"] if segment["label"] == names[0]]
    assert max(iou(segment, shape.mask) for segment in named) > 0.5
    created = client.post("/v1/images", content=image, headers={"content-type": "image/png"})
    assert created.status_code == 201
    click = client.post(
        "/v1/prompt", json={"image_id": created.json()["image_id"], "points": [middle(shape.mask)], "vocabulary": list(dict.fromkeys(names))}
    )
    (segment,) = click.json()["segments"]
    assert iou(segment, shape.mask) > 0.5
    assert segment["label"] == names[0]
    assert click.json()["timing_ms"]["embed"] == 0  # the replica that keeps the features answered


@pytest.mark.cluster
def test_problems_come_through(client: httpx2.Client, scene: Scene) -> None:
    image = encoded(scene.image)
    for request, status, code in (
        ({"points": [[500, 1]]}, 422, "invalid_request"),
        ({"points": [[1, 1]], "vocabulary_id": "x"}, 422, "invalid_vocabulary"),
    ):
        answer = post(client, "/v1/prompt", request, image)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]
    answer = post(client, "/v1/prompt", {"points": [[1, 1]]}, image[: len(image) // 2])
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")
    assert client.get("/readyz").json()["model"]["checkpoint"] == "shapes"
    assert client.get("/docs").status_code == 200


def pids() -> dict[str, list[int]]:
    """The processes of each deployment."""
    details = serve.context._get_global_client().get_serve_details()
    deployments = details["applications"]["uniovseg"]["deployments"].items()
    return {name: [int(replica["pid"]) for replica in found["replicas"] if replica["state"] == "RUNNING"] for name, found in deployments}


def replica_pid() -> int:
    (found,) = pids()["Segmenter"]
    return found


@pytest.mark.cluster
def test_a_replica_begins_with_few_heaps(url: str) -> None:
    """The C library reads what the environment says when a process begins."""
    assert b"MALLOC_ARENA_MAX=2" in Path(f"/proc/{replica_pid()}/environ").read_bytes().split(b"\0")


@pytest.mark.slow
@pytest.mark.cluster
def test_mutated_requests_end_no_process(client: httpx2.Client, scene: Scene) -> None:
    """A share of those of `test_bad_input`, through Serve to the packaged model."""
    before = pids()
    for sent in itertools.islice(Mutations(Image.fromarray(scene.image), "uniovseg", seed=2), 500):
        headers = [(name.encode(), value.encode("latin-1")) for name, value in sent.headers.items()]
        reply = client.request(sent.method, sent.path, headers=headers, content=sent.body)
        assert reply.status_code < 500 or reply.status_code == 503, (sent.what, reply.text[:300])
    assert pids() == before and all(before.values())


@pytest.mark.cluster
def test_requests_outlive_their_replica(client: httpx2.Client, url: str, scene: Scene) -> None:
    image = encoded(scene.image)
    image_id = client.post("/v1/images", content=image, headers={"content-type": "image/png"}).json()["image_id"]
    prompt = {"image_id": image_id, "points": [[64, 64]]}
    before = client.post("/v1/prompt", json=prompt).json()["segments"]
    statuses: list[int] = []

    def everything() -> None:
        statuses.append(httpx2.post(f"{url}/v1/everything", content=image, headers={"content-type": "image/png"}, timeout=SECONDS).status_code)

    threads = [threading.Thread(target=everything) for _ in range(3)]
    for thread in threads:
        thread.start()
    os.kill(replica_pid(), signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert statuses == [200] * 3
    after = client.post("/v1/prompt", json=prompt)
    assert after.status_code == 200
    assert after.json()["segments"] == before


@pytest.mark.cluster
def test_the_model_is_swapped_without_a_failed_request(port: int, url: str, scene: Scene) -> None:
    image = encoded(scene.image)
    statuses: list[int] = []
    names: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = httpx2.post(f"{url}/v1/prompt?points=[[64,64]]", content=image, headers={"content-type": "image/png"}, timeout=SECONDS)
            statuses.append(answer.status_code)
            names.append(answer.json().get("model", {}).get("name", ""))

    pid = replica_pid()
    thread = threading.Thread(target=ask)
    thread.start()

    def wait_for(name: str) -> None:
        while name not in names and thread.is_alive():
            thread.join(0.1)

    wait_for("uniovseg")
    deploy(port, "other")
    wait_for("other")
    stop.set()
    thread.join()
    assert set(statuses) == {200}
    assert set(names) == {"uniovseg", "other"}
    assert names == sorted(names, reverse=True)
    assert replica_pid() == pid  # in place: no process was started anew
