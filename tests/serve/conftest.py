"""What the tests of the service share: files of a scene, a host with the tiny model, an application around it."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from serve.api import create_api
from serve.calls import Backend
from serve.host import Host
from serve.kept import Kept
from serve.measures import Measures
from serve.service import Service
from serve.settings import ModelSource, ReplicaConfig
from uniovseg import checkpoint
from uniovseg.api import Limits
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.data.shapes import SceneConfig, draw_scene, scene_rng
from uniovseg.methods.mask_generation import MaskGeneration

LIMITS = Limits(
    bytes=200_000, request_bytes=20_000, pixels=200_000, side=700, words=20, phrases=30, sentences=500, points=10, boxes=10, seconds=300.0
)
REPLICA = ReplicaConfig(max_batch=4, decoders=1, decode_seconds=60.0, embeddings_bytes=50_000_000)


class LocalImages:
    """`ImageStore` in this process."""

    def __init__(self) -> None:
        self.kept: Kept[bytes] = Kept(1_000_000, 900.0)

    async def get(self, image_id: str) -> bytes | None:
        return self.kept.get(image_id)

    async def put(self, image_id: str, image: bytes) -> None:
        self.kept.put(image_id, image, len(image))

    async def touch(self, image_id: str) -> None:
        self.kept.get(image_id)


def encoded(image: NDArray[np.uint8], form: str = "PNG") -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def decoded_map(data: bytes) -> NDArray[np.integer[Any]]:
    """The values of a grey PNG [h, w]."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert values is not None and values.ndim == 2
    return values  # type: ignore[return-value]


@pytest.fixture(scope="session")
def picture() -> NDArray[np.uint8]:
    """An image of 60 x 90."""
    return np.ascontiguousarray(draw_scene(SceneConfig(size=90), scene_rng(0, 0, 1), held_out=True).image[:60])


@pytest.fixture(scope="session")
def png(picture: NDArray[np.uint8]) -> bytes:
    return encoded(picture)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_method: MaskGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the tiny method that keeps masks of any predicted IoU and names them at 64 px."""
    changes = {"proposals": {"min_predicted_iou": 0.0, "max_proposals": 6}, "regions": {"sizes": [64], "templates": "simple"}}
    folder = tmp_path_factory.mktemp("served") / "tiny"
    config = tiny_method.config.model_dump(mode="json") | changes
    checkpoint.save(folder, CheckpointInfo(step=1, method=config), tiny_method.state())
    return folder


@pytest.fixture(scope="session")
def source(tiny_checkpoint: Path) -> ModelSource:
    return ModelSource(checkpoint=str(tiny_checkpoint), name="tiny")


@pytest.fixture(scope="module")
def host(source: ModelSource) -> Iterator[Host]:
    """A host with the tiny model."""
    made = Host(REPLICA, LIMITS, 900.0)
    asyncio.run(made.load(source))
    yield made
    made.close()


def client_of(backend: Backend, **options: object) -> TestClient:
    """A client of the application around a backend; call it inside ``with``, so that all its requests share one event loop."""
    service = Service(backend, LocalImages(), LIMITS, 900.0)
    api = create_api(service, **{"measures": Measures("test"), "uploads": 50, "upload_bytes": 10**7, **options})  # type: ignore[arg-type]
    return TestClient(api, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(host: Host) -> Iterator[TestClient]:
    with client_of(host) as made:
        yield made
