"""What a CLIP's maps are kept for: the same maps, computed once."""

import pytest
import torch
from torch import Tensor

from uniovseg.models.clip import Clip, ClipConfig, ClipFeatures, load_clip
from uniovseg.models.feature_memory import FeatureMemory

SIDE = 64


@pytest.fixture(scope="module")
def shapes_clip() -> Clip:
    return load_clip(ClipConfig())


class Counting:
    """Counts the images that a CLIP computes."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.images = clip, 0

    def features(self, images: Tensor) -> ClipFeatures:
        self.images += len(images)
        return self.clip.features(images)


def memory_of(clip: Clip, most_bytes: int) -> tuple[FeatureMemory, Counting]:
    counting = Counting(clip)
    return FeatureMemory(counting, most_bytes), counting  # type: ignore[arg-type]


def random_images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_maps_are_the_clips_own_and_computed_once(shapes_clip: Clip) -> None:
    memory, counting = memory_of(shapes_clip, 10**9)
    images = random_images(5)
    for picked in ([0, 1, 2], [2, 4, 0, 4], [3, 1]):
        with torch.no_grad():
            expected = shapes_clip.features(images[picked])
        for found, level in zip(memory(images[picked]), expected, strict=True):
            torch.testing.assert_close(found, level, atol=1e-5, rtol=1e-5)
            assert not found.requires_grad
    assert memory.count == 5
    assert counting.images == 5, "also the one that is twice in a batch"


def test_what_does_not_fit_is_computed_each_time(shapes_clip: Clip) -> None:
    with torch.no_grad():
        size = sum(level.nbytes for level in shapes_clip.features(random_images(1)))
    memory, counting = memory_of(shapes_clip, 2 * size)
    for _ in range(3):
        memory(random_images(4))
    assert memory.count == 2
    assert counting.images == 4 + 2 + 2
