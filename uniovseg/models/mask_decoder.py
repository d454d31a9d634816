"""The mask decoder: prompt tokens read the pixels under their own masks, layer by layer, and become masks (method: 1.6).

A layer is masked cross-attention to one feature level (strides 32, 16, 8 in turn), self-attention among the tokens of one prompt, and a
feed-forward. Prompts never see each other. After every layer each mask token gives a mask embedding and a predicted IoU; the union of a
prompt's masks is what its tokens look at in the next layer. A mask is the product of its embedding with the mask features, and resizing is
linear, so the attention's masks are made at the level's own size from resized features: full-size logits are made only where somebody asks.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.models.layers import MLP, Attention, FeedForward, PositionEncoding, PromptAttention
from uniovseg.models.pixel_decoder import PixelFeatures


class MaskEmbeddings(NamedTuple):
    """What a layer says of each prompt's masks, before any pixel is touched.

    Attributes:
        embeddings: [B, Q, K', C].
        iou_probs: [B, Q, K'] predicted IoU in [0, 1].
    """

    embeddings: Tensor
    iou_probs: Tensor


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

    def forward(self, pixel: PixelFeatures, prompt: Tensor, first_output: int, heads: range) -> list[MaskEmbeddings]:
        """Decode prompt tokens.

        Args:
            pixel: the pixel decoder's output.
            prompt: [B, Q, K, C] tokens of the prompt encoder.
            first_output: index of the first token to decode; the tokens from there on go with `heads`.
            heads: indices of the mask heads.

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
        outputs = [self._predict(tokens, first_output, heads)]
        for number, layer in enumerate(self.layers):
            level = number % 3
            visible = self._visible(outputs[-1].embeddings, by_level[level])
            tokens = layer(tokens, prompt, sources[level], keys[level], visible)
            outputs.append(self._predict(tokens, first_output, heads))
        return outputs

    def features(self, pixel: PixelFeatures) -> Tensor:
        """The map [B, C, H/4, W/4] that mask embeddings are multiplied with."""
        projected: Tensor = self.feature_proj(pixel.mask_features)
        return projected

    def _predict(self, tokens: Tensor, first_output: int, heads: range) -> MaskEmbeddings:
        decoded = self.norm(tokens[:, :, first_output : first_output + len(heads)])
        embeddings = torch.stack([self.mask_heads[head](decoded[:, :, i]) for i, head in enumerate(heads)], dim=2)
        ious = torch.cat([self.iou_heads[head](decoded[:, :, i]) for i, head in enumerate(heads)], dim=2)
        return MaskEmbeddings(embeddings, ious.float().sigmoid())

    @staticmethod
    @torch.no_grad()
    def _visible(embeddings: Tensor, features: Tensor) -> Tensor:
        """[B, Q, L] bool: pixels that any mask of the prompt covers (logit at least 0); all pixels where none does."""
        prompts, masks = embeddings.shape[1:3]
        logits = embeddings.flatten(1, 2) @ features.flatten(2)
        visible = (logits.view(len(logits), prompts, masks, -1) >= 0).any(2)
        return visible | ~visible.any(-1, keepdim=True)


def mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Mask logits at stride 4: [B, ..., C] embeddings times [B, C, h, w] features, [B, ..., h, w]."""
    shape = embeddings.shape[1:-1]
    logits = embeddings.flatten(1, -2) @ features.flatten(2)
    return logits.reshape(len(features), *shape, *features.shape[2:])
