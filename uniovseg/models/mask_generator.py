"""The mask generator of stage 1: pixel decoder, prompt encoder and mask decoder, and the presets of their sizes."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from uniovseg.config import Config
from uniovseg.models.layers import PositionEncoding, PositionKind
from uniovseg.models.mask_decoder import MaskDecoder, MaskEmbeddings, mask_logits
from uniovseg.models.pixel_decoder import PixelDecoder, PixelFeatures
from uniovseg.models.prompt_encoder import PromptEncoder


class MaskGeneratorConfig(Config):
    """Sizes of the mask generator. The defaults are the release's, but for the shared position encoding."""

    dim: int = Field(256, ge=16, multiple_of=8, description="channels of pixel features and tokens")
    num_masks: int = Field(4, ge=1, le=6, description="masks a point; matching tries every assignment of them")
    position: PositionKind = Field(
        "random_shared",
        description="position encoding: random Fourier, one matrix for pixels and prompts or one for each part (release); or sine (paper)",
    )
    encoder_layers: int = Field(6, ge=1, description="deformable layers of the pixel decoder")
    encoder_heads: int = Field(8, ge=1, description="attention heads of the pixel decoder")
    encoder_points: int = Field(4, ge=1, description="sampled points a head and level")
    encoder_ffn_dim: int = Field(1024, ge=1, description="hidden width of the pixel decoder's feed-forward")
    decoder_layers: int = Field(9, ge=1, description="layers of the mask decoder")
    decoder_heads: int = Field(8, ge=1, description="attention heads of the mask decoder")
    decoder_ffn_dim: int = Field(2048, ge=1, description="hidden width of the mask decoder's feed-forward")
    box_windows: bool = Field(False, description="box prompts look only inside their box, and their masks are cut to it (release: neither)")
    point_windows: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="side of the window around the point that each mask of a point is cut to, as a fraction of the view; empty: none (release)"
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "release": {"position": "random_independent"},
        "paper_v1": {"position": "sine", "decoder_layers": 6},
        "shapes": {
            "dim": 64, "encoder_layers": 1, "encoder_heads": 4, "encoder_points": 4, "encoder_ffn_dim": 128,
            "decoder_layers": 3, "decoder_heads": 4, "decoder_ffn_dim": 128, "box_windows": True,
            "point_windows": (0.25, 0.5, 0.8, 2.0),
        },
    }  # fmt: skip

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for name in ("encoder_heads", "decoder_heads"):
            if self.dim % getattr(self, name):
                raise ValueError(f"{name} must divide dim; {name} is {getattr(self, name)} and dim {self.dim}")
        if len(self.point_windows) not in (0, self.num_masks):
            raise ValueError(
                f"point_windows must be empty or have num_masks values; it has {len(self.point_windows)} and num_masks is {self.num_masks}"
            )
        return self


class MaskPrediction(NamedTuple):
    """Masks of prompts.

    Attributes:
        mask_logits: [B, Q, K', H/4, W/4] over the view.
        iou_probs: [B, Q, K'] predicted IoU in [0, 1]. Differs: the release applies a second sigmoid to it at test time; we do not.
    """

    mask_logits: Tensor
    iou_probs: Tensor


class MaskGenerator(nn.Module):
    """Prompts and trunk features to masks. Coordinates are pixels of the view: (0, 0) is its corner, pixel centres lie at i + 0.5.

    Use it step by step, so that nothing is made that nobody asks for: `pixel_decoder` once an image; `embed_points`, `embed_boxes` or
    `embed_point_sets` for any number of prompts; `masks` for the embeddings that are worth a full-size mask.

    Differs: the release shifts boxes by half a pixel when they come as detectron2 boxes, and not when they are tensors; here nothing is
    shifted.
    """

    def __init__(
        self,
        pixel_decoder: PixelDecoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        *,
        box_windows: bool = False,
        point_windows: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.box_windows = box_windows
        self.point_windows = tuple(point_windows)
        self.pixel_decoder = pixel_decoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    @property
    def of_boxes(self) -> list[nn.Parameter]:
        """The parameters that single points do not use: those of boxes and of sets of points."""
        heads = [*self.mask_decoder.mask_heads[0].parameters(), *self.mask_decoder.iou_heads[0].parameters()]
        return [self.prompt_encoder.box_embed, *heads]

    def embed_points(self, pixel: PixelFeatures, points_xy: Tensor) -> list[MaskEmbeddings]:
        """Decode single points [B, Q, 2] up to the mask embeddings of each layer; K' = num_masks."""
        windows = None
        if self.point_windows:
            half = points_xy.new_tensor(self.point_windows)[:, None] / 2
            centres = (points_xy / _size_xy(pixel))[:, :, None]
            windows = torch.cat([centres - half, centres + half], dim=-1)
        prompt = self.prompt_encoder.points(points_xy, pixel.mask_features)
        return self._embed(pixel, prompt, 3, range(1, len(self.mask_decoder.mask_heads)), windows)

    def embed_boxes(self, pixel: PixelFeatures, boxes_xyxy: Tensor) -> list[MaskEmbeddings]:
        """Decode boxes [B, Q, 4] up to the mask embeddings of each layer; K' = 1."""
        windows = (boxes_xyxy / _size_xy(pixel).repeat(2))[:, :, None] if self.box_windows else None
        return self._embed(pixel, self.prompt_encoder.boxes(boxes_xyxy, pixel.mask_features), 2, range(1), windows)

    def embed_point_sets(self, pixel: PixelFeatures, points_xy: Tensor, labels: Tensor) -> list[MaskEmbeddings]:
        """Decode sets of points [B, Q, P, 2] with labels [B, Q, P] of 1 (inside) and 0 (outside); K' = 1."""
        prompt = self.prompt_encoder.point_sets(points_xy, labels, pixel.mask_features)
        return self._embed(pixel, prompt, 2 * points_xy.shape[2], range(1))

    def _embed(self, pixel: PixelFeatures, prompt: Tensor, first_output: int, heads: range, windows: Tensor | None = None) -> list[MaskEmbeddings]:
        layers: list[MaskEmbeddings] = self.mask_decoder(pixel, prompt, first_output, heads, windows)
        return layers

    def masks(self, pixel: PixelFeatures, embedded: list[MaskEmbeddings]) -> list[MaskPrediction]:
        """Logits at stride 4 for what `embed_*` gave: pass all layers for deep supervision, the last alone, or a selection of its masks."""
        features = self.mask_decoder.features(pixel)
        return [MaskPrediction(mask_logits(item, features), item.iou_probs) for item in embedded]


def _size_xy(pixel: PixelFeatures) -> Tensor:
    """(width, height) of the view in pixels."""
    height, width = pixel.mask_features.shape[2:]
    return torch.tensor([width * 4.0, height * 4.0], device=pixel.mask_features.device)


def build_mask_generator(config: MaskGeneratorConfig, channels: tuple[int, int, int, int]) -> MaskGenerator:
    """A mask generator with random weights for a trunk with `channels` at strides 4, 8, 16, 32.

    The weights are drawn from torch's global stream, as torch's own modules do: seed it (or fork it) around the call.
    """
    matrices: list[Tensor | None] = [None] * 3
    if config.position == "random_independent":
        matrices = [torch.randn(2, config.dim // 2) for _ in matrices]
    elif config.position == "random_shared":
        matrices = [torch.randn(2, config.dim // 2)] * 3
    pixels, prompts, keys = (PositionEncoding(config.dim, matrix) for matrix in matrices)
    pixel_decoder = PixelDecoder(
        channels,
        config.dim,
        layers=config.encoder_layers,
        heads=config.encoder_heads,
        points=config.encoder_points,
        ffn_dim=config.encoder_ffn_dim,
        position=pixels,
    )
    mask_decoder = MaskDecoder(
        config.dim,
        layers=config.decoder_layers,
        heads=config.decoder_heads,
        ffn_dim=config.decoder_ffn_dim,
        num_masks=config.num_masks,
        position=keys,
    )
    return MaskGenerator(
        pixel_decoder,
        PromptEncoder(config.dim, config.num_masks, prompts),
        mask_decoder,
        box_windows=config.box_windows,
        point_windows=config.point_windows,
    )
