"""The frozen CLIP: multi-scale visual features, region projector and text encoder of any open_clip model with a ConvNeXt trunk.

Two kinds are used. ``shapes`` is our own small CLIP for the shapes world, built from open_clip's classes; its weights are package data.
Every other name is open_clip's own (``convnext_large_d_320``), with weights found by tag (``laion2b_s29b_b131k_ft_soup``) or path.

Region embeddings pool the last feature map under a mask *before* the trunk's final normalisation, then normalise and project, so that pooling the
whole image gives exactly the CLIP image embedding.

open_clip brings torchvision and transformers, which take seconds to import: it is imported where a CLIP is built, so that ``--help``, a job's checks
and Ray's own processes need not wait for it.
"""

import functools
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.checkpoint import load_weights
from uniovseg.config import Config
from uniovseg.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from open_clip import SimpleTokenizer
    from open_clip.model import CLIP

SHAPES_WEIGHTS = "weights/shapes_clip.safetensors"
"""Where the shapes CLIP's weights lie inside the package."""

CONTEXT_STEP = 16
"""Tokens: so that most texts are computed alike, to the last bit, whichever come with them."""

WORDS_KEPT = 100_000
"""Words whose tokens open_clip's tokenizer remembers; by itself it would forget none."""

CHECKPOINT = "checkpoint"
"""As `ClipConfig.weights`: random for now, a checkpoint that holds the CLIP's weights follows."""


class ClipConfig(Config):
    """Which CLIP, with which weights."""

    name: str = Field("shapes", description="'shapes', or a model name of open_clip with a ConvNeXt trunk, such as convnext_large_d_320")
    weights: str | None = Field(
        None,
        description="open_clip's pretrained tag or a weights file; null: the packaged weights for 'shapes', random ones for others; "
        "'checkpoint': they come with the method's checkpoint",
    )


class ClipFeatures(NamedTuple):
    """Feature maps of a batch: ``res2`` to ``res5``, [B, C, H/s, W/s] at strides s = 4, 8, 16, 32. ``res5`` is also the map that regions are pooled from."""

    res2: Tensor
    res3: Tensor
    res4: Tensor
    res5: Tensor


class ChannelNorm(nn.Module):
    """timm's ``SimpleNorm2d`` with its weights: each pixel's channels divided by their standard deviation, then weighted.

    timm asks `torch.var`, which takes ten times as long for few channels on a CPU, a third of the whole small trunk.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        pixels = x.permute(0, 2, 3, 1)
        variance = (pixels - pixels.mean(-1, keepdim=True)).square().sum(-1, keepdim=True) / (x.shape[1] - 1)
        return (pixels * torch.rsqrt(variance + self.eps) * self.weight).permute(0, 3, 1, 2)


def build_shapes_clip() -> "CLIP":
    """The shapes world's CLIP with random weights: a 2.0 M-parameter ConvNeXt (dims 32-256), two text layers of width 128, embedding 128.

    Differs: layer scale starts at 0.3 where ConvNeXt has 1e-6, which a run of a few thousand steps could not leave.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from timm.layers import SimpleNorm2d

    model = CLIP(
        embed_dim=128,
        vision_cfg=CLIPVisionCfg(timm_model_name="convnext_zepto_rms", timm_pool="", timm_proj="mlp", image_size=128),
        text_cfg=CLIPTextCfg(context_length=64, width=128, heads=4, layers=2),
    )
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            nn.init.constant_(parameter, 0.3)
    trunk = model.visual.trunk
    for name, module in list(trunk.named_modules()):
        if isinstance(module, SimpleNorm2d):
            trunk.set_submodule(name, ChannelNorm(module.weight, module.eps))
    return model


class Clip(nn.Module):
    """A CLIP seen as this project needs it. `freeze` it unless it is being pretrained.

    Args:
        model: an open_clip model whose visual tower is a timm ConvNeXt.
        mean, std: normalisation of RGB in [0, 1].
        tokenizer: open_clip's tokenizer of the text tower.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: "CLIP", tokenizer: "SimpleTokenizer") -> None:
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1) * 255, persistent=False)

    def freeze(self) -> "Clip":
        """Stop all gradients and stay in evaluation mode; returns self."""
        self.requires_grad_(False)
        return self.eval()

    @property
    def feature_channels(self) -> tuple[int, int, int, int]:
        """Channels of the four feature maps, stride 4 first."""
        return cast(tuple[int, int, int, int], tuple(info["num_chs"] for info in self.model.visual.trunk.feature_info))

    @property
    def embed_dim(self) -> int:
        """Size of the joint embedding."""
        return int(self.model.text_projection.shape[1])

    def features(self, images: Tensor, after_stage: Callable[[int, Tensor], Tensor] | None = None) -> ClipFeatures:
        """Multi-scale features of [B, 3, H, W] RGB images in 0..255 (any dtype); H and W divisible by 32.

        `after_stage` may change each stage's map (number 0 to 3, map) before the next stage reads it.
        """
        trunk = self.model.visual.trunk
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = trunk.stem(x.to(trunk.stem[0].weight.dtype))
        maps = []
        for number, stage in enumerate(trunk.stages):
            x = stage(x)
            if after_stage is not None:
                x = after_stage(number, x)
            maps.append(x)
        maps[-1] = trunk.norm_pre(x)
        return ClipFeatures(*maps)

    def project(self, pooled: Tensor) -> Tensor:
        """The visual projector F_v: pooled ``res5`` vectors [..., C] to joint embeddings [..., D], not normalised (method: normalisation after pooling)."""
        visual = self.model.visual
        flat = pooled.reshape(-1, pooled.shape[-1])
        embedded: Tensor = visual.head(visual.trunk.head(flat[:, :, None, None]))
        return embedded.reshape(*pooled.shape[:-1], -1)

    def embed_regions(self, dense: Tensor, cells: Tensor) -> Tensor:
        """Embeddings of regions (method: Eq. 5): the mean of the cells' vectors, projected and L2-normalised.

        Args:
            dense: [C, h, w] the last feature map of one image, frozen or adapted.
            cells: [n, h, w] bool, at least one cell of each region true.

        Returns:
            [n, D] float32 unit vectors.
        """
        if not len(cells):
            return dense.new_zeros(0, self.embed_dim, dtype=torch.float32)
        weights = cells.flatten(1).to(dense.dtype)
        pooled = weights @ dense.flatten(1).T / weights.sum(1, keepdim=True)
        return F.normalize(self.project(pooled).float(), dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings [B, D], not normalised: the projection of the mean of ``res5``."""
        return self.project(self.features(images).res5.mean(dim=(2, 3)))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Text embeddings [T, D], not normalised.

        The context ends where the longest text does, rounded up to `CONTEXT_STEP` tokens. Open_clip's own goes on to its full length, several times the
        work for the same embeddings: each token sees only those before it, and a text is read at its end.
        """
        model = self.model
        if len(self.tokenizer.cache) > WORDS_KEPT:
            self.tokenizer.cache = {token: token for token in map(self.tokenizer.decoder.__getitem__, self.tokenizer.all_special_ids)}
        tokens = self.tokenizer(texts).to(model.text_projection.device)
        ends = tokens.argmax(1)  # the end of a text is the largest token
        length = min(-(-(int(ends.max()) + 1) // CONTEXT_STEP) * CONTEXT_STEP, tokens.shape[1])
        x = (model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]).to(model.transformer.get_cast_dtype())
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return cast(Tensor, x[torch.arange(len(x), device=x.device), ends] @ model.text_projection)

    @property
    def logit_scale(self) -> Tensor:
        """The learned inverse temperature, at most 100."""
        return cast(Tensor, self.model.logit_scale.exp().clamp(max=100))


def load_clip(config: ClipConfig) -> Clip:
    """Build the CLIP that `config` names and load its weights; on the CPU, frozen.

    Raises:
        ConfigError: open_clip knows no such model or tag, or the trunk is not a ConvNeXt.
        CheckpointError: the weights file is missing or does not fit.
    """
    import open_clip

    if config.name == "shapes":
        model = build_shapes_clip()
        if config.weights != CHECKPOINT:
            load_shapes_weights(model, Path(config.weights) if config.weights else None)
        return Clip(model, open_clip.SimpleTokenizer(context_length=model.context_length)).freeze()
    if config.name not in open_clip.list_models():
        raise ConfigError("no such CLIP", seen=config.name, allowed="'shapes' or a name from open_clip.list_models()")
    try:
        pretrained = None if config.weights == CHECKPOINT else config.weights
        model = open_clip.create_model(config.name, pretrained=pretrained, device=torch.get_default_device())
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the weights of {config.name} cannot be loaded",
            seen=config.weights,
            allowed="a tag from open_clip.list_pretrained() (needs the internet once) or a local file",
            fix=" ".join(str(error).split())[:200],
        ) from error
    if not hasattr(getattr(model.visual, "trunk", None), "stages"):
        raise ConfigError("the CLIP's visual tower is not a ConvNeXt", seen=config.name, allowed="open_clip models named convnext_*")
    return Clip(model, open_clip.get_tokenizer(config.name)).freeze()


def weights_digest(config: ClipConfig) -> str | None:
    """The sha256 of the file that a CLIP's weights are read from; None where it is named by a tag, random, or comes with a checkpoint."""
    if config.weights is not None:
        return _digest(Path(config.weights).absolute()) if Path(config.weights).is_file() else None
    if config.name != "shapes":
        return None
    with resources.as_file(resources.files("uniovseg") / SHAPES_WEIGHTS) as packaged:
        return _digest(packaged)


@functools.cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(config: ClipConfig, digest: str | None) -> None:
    """Raise CheckpointError where `digest`, that a checkpoint says its CLIP had, is not that of the weights which `config` gives."""
    if digest is not None and (found := weights_digest(config)) != digest:
        raise CheckpointError(
            "the checkpoint was trained over another CLIP", seen=f"clip weights {str(found)[:12]}", allowed=digest[:12],
            fix="give the weights that it was trained with (method.clip.weights), or train it again",
        )  # fmt: skip


def load_shapes_weights(model: "CLIP", path: Path | None) -> None:
    """Load weights of the shapes CLIP from a safetensors file; None takes the packaged ones."""
    try:
        if path is not None:
            state = load_file(path)
        else:
            with resources.as_file(resources.files("uniovseg") / SHAPES_WEIGHTS) as packaged:
                state = load_file(packaged)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "the shapes CLIP's weights cannot be read", seen=path or SHAPES_WEIGHTS, fix="make them: python jobs/pretrain_clip.py"
        ) from error
    load_weights(model, {name: value.float() for name, value in state.items()}, set(model.state_dict()))
