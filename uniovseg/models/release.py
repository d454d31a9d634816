"""The released stage-1 checkpoint (``stage1.pth``, a detectron2 file) in our names, and back.

The release names the mask branch ``sem_seg_head.pixel_decoder.*`` and ``sem_seg_head.predictor.*``, and the CLIP ``backbone.clip_model.*``
(open_clip's own names). A rule is a pattern of ours and its pattern there: the last ``{}`` stands for the rest of the name, the others for
layer numbers, the same on both sides. The first rule that matches counts.
"""

import codecs
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from uniovseg.errors import CheckpointError
from uniovseg.models.clip import CHECKPOINT, ClipConfig, load_clip
from uniovseg.models.mask_generator import MaskGenerator, MaskGeneratorConfig, build_mask_generator

RELEASE_CHANNELS = (192, 384, 768, 1536)
"""Channels of convnext_large_d_320 at strides 4, 8, 16, 32."""

RELEASE_CLIP = ClipConfig(name="convnext_large_d_320", weights="laion2b_s29b_b131k_ft_soup")
"""The CLIP that the release was trained over."""

_RECONSTRUCT = cast(Callable[..., Any], np.empty(0).__reduce__()[0])
_NUMPY: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # the name that numpy 1 wrote
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float16)),
    type(np.dtype(np.int64)),
    codecs.encode,
]
"""What a pickled numpy array names: rebuilt from bytes, it runs no code of the file."""

CLIP_PREFIX = "backbone.clip_model."
_PIXEL, _PREDICTOR, _PROMPT = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.", "sem_seg_head.predictor.prompt_encoder."
_GAUSSIAN = "positional_encoding_gaussian_matrix"

RULES: tuple[tuple[str, str], ...] = (
    ("pixel_decoder.input_proj.{}", _PIXEL + "input_proj.{}"),
    ("pixel_decoder.level_embed", _PIXEL + "transformer.level_embed"),
    ("pixel_decoder.layers.{}.ffn.linear{}", _PIXEL + "transformer.encoder.layers.{}.linear{}"),
    ("pixel_decoder.layers.{}.{}", _PIXEL + "transformer.encoder.layers.{}.{}"),
    ("pixel_decoder.position.matrix", _PIXEL + "pe_layer." + _GAUSSIAN),
    ("pixel_decoder.lateral.0.weight", _PIXEL + "adapter_1.weight"),
    ("pixel_decoder.lateral.1.{}", _PIXEL + "adapter_1.norm.{}"),
    ("pixel_decoder.output.0.weight", _PIXEL + "layer_1.weight"),
    ("pixel_decoder.output.1.{}", _PIXEL + "layer_1.norm.{}"),
    ("pixel_decoder.mask_features.{}", _PIXEL + "mask_features.{}"),
    ("prompt_encoder.corner_embed", _PROMPT + "corner_emb"),
    ("prompt_encoder.point_embed", _PROMPT + "point_emb"),
    ("prompt_encoder.box_embed", _PROMPT + "box_emb"),
    ("prompt_encoder.mask_embed", _PROMPT + "mask_emb"),
    ("prompt_encoder.label_embed.weight", _PROMPT + "attr_emb.weight"),
    ("prompt_encoder.position.matrix", _PROMPT + "pos_emb." + _GAUSSIAN),
    ("mask_decoder.position.matrix", _PREDICTOR + "pe_layer." + _GAUSSIAN),
    ("mask_decoder.prompt_attention.{}", _PREDICTOR + "extra_self_attention_layer.self_attn.{}"),
    ("mask_decoder.prompt_norm.{}", _PREDICTOR + "extra_self_attention_layer.norm.{}"),
    ("mask_decoder.layers.{}.cross_attention.{}", _PREDICTOR + "transformer_cross_attention_layers.{}.multihead_attn.{}"),
    ("mask_decoder.layers.{}.cross_norm.{}", _PREDICTOR + "transformer_cross_attention_layers.{}.norm.{}"),
    ("mask_decoder.layers.{}.self_attention.{}", _PREDICTOR + "transformer_self_attention_layers.{}.self_attn.{}"),
    ("mask_decoder.layers.{}.self_norm.{}", _PREDICTOR + "transformer_self_attention_layers.{}.norm.{}"),
    ("mask_decoder.layers.{}.ffn.linear{}", _PREDICTOR + "transformer_ffn_layers.{}.linear{}"),
    ("mask_decoder.layers.{}.ffn_norm.{}", _PREDICTOR + "transformer_ffn_layers.{}.norm.{}"),
    ("mask_decoder.level_embed.{}", _PREDICTOR + "level_embed.{}"),
    ("mask_decoder.feature_proj.{}", _PREDICTOR + "feat_embed.{}"),
    ("mask_decoder.norm.{}", _PREDICTOR + "decoder_norm.{}"),
    ("mask_decoder.mask_heads.{}", _PREDICTOR + "mask_embed.{}"),
    ("mask_decoder.iou_heads.{}", _PREDICTOR + "iou_embed.{}"),
)


def _matcher(pattern: str) -> re.Pattern[str]:
    pieces = [re.escape(piece) for piece in pattern.split("{}")]
    gaps = [r"(\d+)"] * (len(pieces) - 2) + [r"(.+)"] * (len(pieces) > 1)
    return re.compile("".join(piece + gap for piece, gap in zip(pieces, [*gaps, ""], strict=True)))


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for source, target in rules:
        match = _matcher(source).fullmatch(name)
        if match:
            return target.format(*match.groups())
    raise KeyError(name)


def to_release(name: str) -> str:
    """The release's name of one of our mask generator's tensors. Raises KeyError for a name that no rule covers."""
    return _rename(name, RULES)


def from_release(name: str) -> str:
    """Our name of one of the release's mask branch tensors. Raises KeyError for a name that no rule covers."""
    return _rename(name, ((theirs, ours) for ours, theirs in RULES))


def release_generator() -> MaskGenerator:
    """The released network with random weights, on whatever device torch's default is (``meta`` for names and shapes alone)."""
    return build_mask_generator(MaskGeneratorConfig.preset("release"), RELEASE_CHANNELS)


def release_names() -> dict[str, list[int]]:
    """Names, as released, and shapes of all tensors of the mask branch."""
    with torch.device("meta"):
        state = release_generator().state_dict()
    return {to_release(name): list(value.shape) for name, value in state.items()}


def release_clip_names() -> dict[str, list[int]]:
    """Names, as released, and shapes of all tensors of the CLIP."""
    with torch.device("meta"):
        clip = load_clip(ClipConfig(name=RELEASE_CLIP.name, weights=CHECKPOINT))
    return {CLIP_PREFIX + name: list(value.shape) for name, value in clip.model.state_dict().items()}


class ReleasedWeights(NamedTuple):
    """A released checkpoint in our names: the CLIP's state (open_clip's names; empty if the file has none) and the mask generator's."""

    clip: dict[str, Tensor]
    generator: dict[str, Tensor]


def read_release(path: str | Path) -> ReleasedWeights:
    """Read ``stage1.pth``: tensors (or numpy arrays, which detectron2 writes too) under ``model``, or a bare state dict.

    Nothing in the file is executed: it is read with ``weights_only``, which takes tensors, plain containers and, here, numpy arrays.

    Raises:
        CheckpointError: no such file; not a file of tensors; tensors missing, left over, or of another shape than released.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError("the released checkpoint cannot be read", seen=path, fix=str(error.strerror)) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            "the file is not a checkpoint of tensors alone", seen=path, allowed="the release's stage1.pth", fix=str(error).splitlines()[0]
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError("the file holds no state dict", seen=type(loaded).__name__, allowed="a dict of tensors, or one under 'model'")
    strange = [name for name, value in state.items() if not isinstance(value, Tensor | np.ndarray)]
    if strange:
        raise CheckpointError("the checkpoint's state dict holds more than tensors", seen=f"{strange[0]}: {type(state[strange[0]]).__name__}")
    return split_release({name: torch.as_tensor(value) for name, value in state.items()})


def split_release(state: Mapping[str, Tensor]) -> ReleasedWeights:
    """Sort a released state dict into our names. Every tensor is accounted for: those of the mask branch, and those of the CLIP where it has any.

    Raises:
        CheckpointError: names the first missing and left-over tensors and counts them, or the first wrong shape.
    """
    expected = release_names()
    if any(name.startswith(CLIP_PREFIX) for name in state):
        expected |= release_clip_names()
    missing, left_over = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or left_over:
        raise CheckpointError(
            "the checkpoint is not the released stage 1",
            seen=f"{_some('missing', missing)}; {_some('left over', left_over)}",
            allowed=f"the {len(expected)} tensors of the released mask branch, and of its CLIP where any of these is there",
        )
    wrong = [name for name, value in state.items() if list(value.shape) != expected[name]]
    if wrong:
        raise CheckpointError(f"{wrong[0]} has another shape than released", seen=list(state[wrong[0]].shape), allowed=expected[wrong[0]])
    clip = {name.removeprefix(CLIP_PREFIX): value for name, value in state.items() if name.startswith(CLIP_PREFIX)}
    return ReleasedWeights(clip, {from_release(name): value for name, value in state.items() if not name.startswith(CLIP_PREFIX)})


def _some(what: str, names: Iterable[str]) -> str:
    listed = list(names)
    return f"{len(listed)} {what}" + (f" ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})" if listed else "")
