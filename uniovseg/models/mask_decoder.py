"""The mask decoder: prompt tokens read the pixels under their own masks, layer by layer, and become masks (method: 1.6).

A layer is masked cross-attention to one feature level (strides 32, 16, 8 in turn), self-attention among the tokens of one prompt, and a
feed-forward. Prompts never see each other. After every layer each mask token gives a mask embedding and a predicted IoU; the union of a
prompt's masks is what its tokens look at in the next layer. A mask is the product of its embedding with the mask features, and resizing is
linear, so the attention's masks are made at the level's own size from resized features: full-size logits are made only where somebody asks.

A mask may have a window, a box that it cannot leave: the mask is cut to it, and the prompt's tokens look only inside the windows of its masks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.models.layers import MLP, Attention, FeedForward, PositionEncoding, PromptAttention
from uniovseg.models.pixel_decoder import PixelFeatures
from uniovseg.ops.masks import cells_in_boxes

CUT_LOGIT = -8.0
"""Logit of a mask outside its window: probability 0.0003."""


class MaskEmbeddings(NamedTuple):
    """What a layer says of each prompt's masks, before any pixel is touched. Of the decoder, ... is [B, Q, K'].

    Attributes:
        embeddings: [..., C].
        iou_probs: [...] predicted IoU in [0, 1].
        windows: [..., 4] x0, y0, x1, y1 as fractions of the view, what each mask is cut to; None: no mask is cut.
    """

    embeddings: Tensor
    iou_probs: Tensor
    windows: Tensor | None = None

    def take(self, index: Any) -> "MaskEmbeddings":
        """The masks that an index into [...] picks."""
        return MaskEmbeddings(self.embeddings[index], self.iou_probs[index], None if self.windows is None else self.windows[index])

    def flat(self) -> "MaskEmbeddings":
        """All masks in one row."""
        windows = None if self.windows is None else self.windows.flatten(0, -2)
        return MaskEmbeddings(self.embeddings.flatten(0, -2), self.iou_probs.flatten(), windows)

    @staticmethod
    def cat(parts: Sequence["MaskEmbeddings"]) -> "MaskEmbeddings":
        """Parts from one generator, joined at their first dimension."""
        windows = [part.windows for part in parts if part.windows is not None]
        embeddings = torch.cat([part.embeddings for part in parts])
        return MaskEmbeddings(embeddings, torch.cat([part.iou_probs for part in parts]), torch.cat(windows) if windows else None)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention within a prompt, feed-forward; each with residual and post-normalisation."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attention = PromptAttention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)
        for layer in (self.ffn.linear1, self.ffn.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, tokens: Tensor, prompt: Tensor, source: Tensor, key: Tensor, visible: Tensor) -> Tensor:
        """One layer.

        Args:
            tokens: [B, Q, K, C].
            prompt: [B, Q, K, C], the prompt tokens as encoded; added to every query.
            source, key: [B, L, C], the level's features without and with positions.
            visible: [B, Q, L] bool.
        """
        tokens = self.cross_norm(tokens + self.cross_attention.forward_masked(tokens + prompt, key, source, visible))
        flat, shape = tokens.flatten(0, 1), tokens.shape
        query = flat + prompt.flatten(0, 1)
        tokens = self.self_norm(flat + self.self_attention(query, query, flat)).view(shape)
        out: Tensor = self.ffn_norm(tokens + self.ffn(tokens))
        return out


class MaskDecoder(nn.Module):
    """Prompt tokens to masks.

    Differs: the release repeats the attention's mask over tokens and heads, and makes every layer's masks at full size; the results are
    equal.

    Args:
        dim, layers, heads, ffn_dim: of the transformer.
        num_masks: masks a point; there is one more mask head, for boxes and point sets.
        position: encoding of pixel positions.
    """

    def __init__(self, dim: int, *, layers: int, heads: int, ffn_dim: int, num_masks: int, position: PositionEncoding) -> None:
        super().__init__()
        self.position = position
        self.prompt_attention = Attention(dim, heads)
        self.prompt_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList([DecoderLayer(dim, heads, ffn_dim) for _ in range(layers)])
        self.level_embed = nn.Embedding(3, dim)
        self.feature_proj = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.mask_heads = nn.ModuleList([MLP(dim, dim) for _ in range(num_masks + 1)])
        self.iou_heads = nn.ModuleList([MLP(dim, 1) for _ in range(num_masks + 1)])

    def forward(self, pixel: PixelFeatures, prompt: Tensor, first_output: int, heads: range, windows: Tensor | None = None) -> list[MaskEmbeddings]:
        """Decode prompt tokens.

        Args:
            pixel: the pixel decoder's output.
            prompt: [B, Q, K, C] tokens of the prompt encoder.
            first_output: index of the first token to decode; the tokens from there on go with `heads`.
            heads: indices of the mask heads.
            windows: [B, Q, K', 4] fractions of the view, or None.

        Returns:
            One `MaskEmbeddings` before the first layer and one after each layer; the last is the answer.
        """
        features = self.features(pixel)
        by_level = [F.interpolate(features, size=level.shape[-2:], mode="bilinear", align_corners=False) for level in pixel.levels]
        sources = [level.flatten(2).transpose(1, 2) + self.level_embed.weight[i] for i, level in enumerate(pixel.levels)]
        keys = [
            source + self.position.grid((level.shape[2], level.shape[3]), level.device) for source, level in zip(sources, pixel.levels, strict=True)
        ]

        flat = prompt.flatten(0, 1)
        tokens = self.prompt_norm(flat + self.prompt_attention(flat, flat, flat)).view(prompt.shape)
        outputs = [self._predict(tokens, first_output, heads, windows)]
        for number, layer in enumerate(self.layers):
            level = number % 3
            visible = self._visible(outputs[-1], by_level[level])
            tokens = layer(tokens, prompt, sources[level], keys[level], visible)
            outputs.append(self._predict(tokens, first_output, heads, windows))
        return outputs

    def features(self, pixel: PixelFeatures) -> Tensor:
        """The map [B, C, H/4, W/4] that mask embeddings are multiplied with."""
        projected: Tensor = self.feature_proj(pixel.mask_features)
        return projected

    def _predict(self, tokens: Tensor, first_output: int, heads: range, windows: Tensor | None) -> MaskEmbeddings:
        decoded = self.norm(tokens[:, :, first_output : first_output + len(heads)])
        embeddings = torch.stack([self.mask_heads[head](decoded[:, :, i]) for i, head in enumerate(heads)], dim=2)
        ious = torch.cat([self.iou_heads[head](decoded[:, :, i]) for i, head in enumerate(heads)], dim=2)
        return MaskEmbeddings(embeddings, ious.float().sigmoid(), windows)

    @staticmethod
    @torch.no_grad()
    def _visible(predicted: MaskEmbeddings, features: Tensor) -> Tensor:
        """[B, Q, L] bool: pixels that any mask of the prompt covers (logit at least 0); where none does, all pixels of its windows."""
        prompts, masks = predicted.embeddings.shape[1:3]
        logits = predicted.embeddings.flatten(1, 2) @ features.flatten(2)
        covered = logits.view(len(logits), prompts, masks, -1) >= 0
        if predicted.windows is None:
            visible = covered.any(2)
            return visible | ~visible.any(-1, keepdim=True)
        inside = in_windows(predicted.windows, (features.shape[2], features.shape[3])).flatten(3)
        visible = (covered & inside).any(2)
        return visible | (inside.any(2) & ~visible.any(-1, keepdim=True))


def in_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of an (h, w) grid over the view that windows [..., 4] (fractions) touch: [..., h, w] bool. A window of no extent touches one cell or two."""
    height, width = size
    return cells_in_boxes(windows.float() * windows.new_tensor([width, height, width, height]).float(), size)


def mask_logits(masks: MaskEmbeddings, features: Tensor) -> Tensor:
    """Mask logits at stride 4.

    Args:
        masks: [B, ...] masks.
        features: [B, C, h, w].

    Returns:
        [B, ..., h, w]; `CUT_LOGIT` outside a mask's window.
    """
    shape = masks.embeddings.shape[1:-1]
    logits = (masks.embeddings.flatten(1, -2) @ features.flatten(2)).reshape(len(features), *shape, *features.shape[2:])
    if masks.windows is None:
        return logits
    return logits.masked_fill(~in_windows(masks.windows, (features.shape[2], features.shape[3])), CUT_LOGIT)
