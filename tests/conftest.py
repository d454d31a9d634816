"""What several tests share: an S3 bucket, a CLIP with random weights, a tiny method on it, and a tiny shard set of the shapes world."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import save_file

from tests.object_store import fault_proxy, object_store, store_bucket  # noqa: F401 (fixtures)
from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.data.shapes import SceneConfig, draw_scene, image_masks, scene_rng
from uniovseg.data.shapes_sets import write_panoptic
from uniovseg.losses import LossConfig
from uniovseg.matching import MatchingConfig
from uniovseg.methods.mask_generation import MaskGeneration, MaskGenerationConfig, build_mask_generation
from uniovseg.models.clip import ClipConfig, build_shapes_clip
from uniovseg.models.mask_generator import MaskGeneratorConfig
from uniovseg.records import ImageMasks
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.shards import PartRange, write_manifest, write_part
from uniovseg.storage import Location

SCENE = SceneConfig(size=96)


def pytest_configure() -> None:
    """One thread of torch: two would spin for each other beside the tests' servers and workers, and be ten times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of five CPU slots, what two workers and their feeds take; `ray_session` inside a test joins it."""
    if os.environ.get("RAY_ADDRESS"):
        pytest.fail("RAY_ADDRESS is set: these tests want a cluster of their own")
    with ray_session(5):
        yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on this machine."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket, with the environment that leads to it."""
    settings = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (settings | {"AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file for the shapes world's CLIP, random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build_shapes_clip().state_dict()
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({name: value.half().contiguous() for name, value in state.items() if name != "attn_mask"}, path)
    return path


@pytest.fixture(scope="session")
def tiny_config(clip_weights: Path) -> MaskGenerationConfig:
    """Stage 1 at 64 px with a mask generator of two decoder layers."""
    return MaskGenerationConfig(
        clip=ClipConfig(weights=str(clip_weights)),
        generator=MaskGeneratorConfig(
            dim=32, encoder_layers=1, encoder_heads=4, encoder_points=2, encoder_ffn_dim=48, decoder_layers=2, decoder_heads=4, decoder_ffn_dim=48
        ),
        matching=MatchingConfig(grid=16),
        loss=LossConfig(num_points=32),
        size=64,
        train_points_per_side=2,
        test_points_per_side=4,
        max_boxes=3,
    )


@pytest.fixture(scope="session")
def tiny_method(tiny_config: MaskGenerationConfig) -> MaskGeneration:
    """The tiny method with random weights, in evaluation mode; not to be trained by a test."""
    method = build_mask_generation(tiny_config, 0)
    method.eval()
    return method


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_method: MaskGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny method's checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(folder, CheckpointInfo(step=0, method=tiny_method.config.model_dump(mode="json")), tiny_method.state())
    return folder


@pytest.fixture(scope="session")
def labelled_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose evaluation/ holds four labelled scenes of 96 px, as `uniovseg.data.benchmarks` finds them by the name of shapes."""
    folder = tmp_path_factory.mktemp("world")
    write_panoptic((draw_scene(SCENE, scene_rng(0, 9, index), held_out=True) for index in range(4)), folder / "evaluation", SCENE)
    return folder


@pytest.fixture(scope="session")
def scenes() -> list[ImageMasks]:
    """Ten image-mask samples of 96 px."""
    return [image_masks(SCENE, 5, index) for index in range(10)]


@pytest.fixture(scope="session")
def shapes_shards(scenes: list[ImageMasks], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of the ten scenes in two files, with row groups of 3, 3, 1 and 3 rows."""
    folder = tmp_path_factory.mktemp("shards")
    commits = [
        write_part(
            PartRange(name=f"part_{number}", source="shapes", begin=begin, end=end), list(enumerate(scenes))[begin:end], Location.of(folder), 3
        )
        for number, (begin, end) in enumerate([(0, 7), (7, 10)])
    ]
    write_manifest(Location.of(folder), commits)
    return folder
