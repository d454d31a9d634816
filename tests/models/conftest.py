import pytest
import torch

from uniovseg.models.mask_generator import MaskGenerator, MaskGeneratorConfig, build_mask_generator
from uniovseg.models.pixel_decoder import PixelFeatures

CHANNELS = (8, 12, 16, 24)
TINY = MaskGeneratorConfig(
    dim=32,
    num_masks=3,
    encoder_layers=2,
    encoder_heads=4,
    encoder_points=2,
    encoder_ffn_dim=48,
    decoder_layers=4,
    decoder_heads=4,
    decoder_ffn_dim=48,
)


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trunk features of two views of 64 x 96 pixels."""
    noise = torch.Generator().manual_seed(1)
    shapes = [(2, channels, 64 // stride, 96 // stride) for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)]
    a, b, c, d = (torch.randn(shape, generator=noise) for shape in shapes)
    return a, b, c, d


@pytest.fixture
def generator() -> MaskGenerator:
    """A small mask generator of four decoder layers, so that every level is visited and the first one twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_mask_generator(TINY, CHANNELS)


@pytest.fixture
def pixel(generator: MaskGenerator, features: tuple[torch.Tensor, ...]) -> PixelFeatures:
    """The small generator's pixel features, without a graph."""
    with torch.no_grad():
        found: PixelFeatures = generator.pixel_decoder(features)
        return found


@pytest.fixture
def points() -> torch.Tensor:
    """Six points in each view, [2, 6, 2] in view pixels."""
    return torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([96.0, 64.0])


@pytest.fixture
def boxes(points: torch.Tensor) -> torch.Tensor:
    """Six boxes in each view, [2, 6, 4] in view pixels."""
    return torch.cat([points * 0.5, points * 0.5 + 20], dim=-1)
