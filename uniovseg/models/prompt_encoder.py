"""The prompt encoder: points and boxes to query tokens (method: 1.5).

Every prompt is a pair of corners (a point is the 4 x 4 pixel box around it), so its tokens are the encodings of two corners, followed by
mask tokens that the mask decoder turns into masks: one for each mask of a point, one for a box or a set of points.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.models.layers import PositionEncoding

POINT_RADIUS = 2.0
"""Half the side of the box that stands for a point, in pixels of the view."""


class PromptEncoder(nn.Module):
    """Tokens for prompts.

    Args:
        dim: channels.
        num_masks: masks a point.
        position: encoding of corner positions.
    """

    def __init__(self, dim: int, num_masks: int, position: PositionEncoding) -> None:
        super().__init__()
        self.corner_embed = nn.Parameter(torch.randn(1, 2, dim))
        self.point_embed = nn.Parameter(torch.randn(1, 1, dim))
        self.box_embed = nn.Parameter(torch.randn(1, 1, dim))
        self.mask_embed = nn.Parameter(torch.randn(1, num_masks + 1, dim))
        self.label_embed = nn.Embedding(2, dim)
        self.position = position

    def points(self, points_xy: Tensor, mask_features: Tensor) -> Tensor:
        """Tokens of single foreground points [B, Q, 2] in view pixels: [B, Q, 2 + num_masks + 1, C], corners first."""
        corners = self._corners(points_xy, points_xy, mask_features) + self.point_embed + self.label_embed.weight[1]
        return self._with_mask_tokens(corners, self.mask_embed)

    def boxes(self, boxes_xyxy: Tensor, mask_features: Tensor) -> Tensor:
        """Tokens of boxes [B, Q, 4] in view pixels: [B, Q, 2 + num_masks + 1, C]. They carry all mask tokens; the first is decoded."""
        first, last = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
        return self._with_mask_tokens(self._corners(first, last, mask_features, radius=0.0) + self.box_embed, self.mask_embed)

    def point_sets(self, points_xy: Tensor, labels: Tensor, mask_features: Tensor) -> Tensor:
        """Tokens of sets of points [B, Q, P, 2] in view pixels with labels [B, Q, P] (1 inside, 0 outside): [B, Q, 2P + 1, C].

        Differs: the release decodes a corner token of the last point here, by a slip; we decode the mask token.
        """
        batch, sets, count, _ = points_xy.shape
        flat = points_xy.flatten(1, 2)
        corners = self._corners(flat, flat, mask_features) + self.point_embed + self.label_embed(labels.flatten(1, 2).long())[:, :, None]
        return self._with_mask_tokens(corners.reshape(batch, sets, 2 * count, -1), self.mask_embed[:, :1])

    def _corners(self, first_xy: Tensor, last_xy: Tensor, mask_features: Tensor, radius: float = POINT_RADIUS) -> Tensor:
        """Two corner tokens [B, Q, 2, C]: position, corner, and the mask features at the prompt's centre."""
        height, width = mask_features.shape[2] * 4, mask_features.shape[3] * 4
        size = first_xy.new_tensor([width, height])
        corners = torch.stack([first_xy - radius, last_xy + radius], dim=2) / size
        centre = (first_xy + last_xy) / 2 / size
        content = F.grid_sample(mask_features, 2 * centre[:, :, None] - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
        tokens: Tensor = self.position(corners) + self.corner_embed + content.permute(0, 2, 3, 1)
        return tokens

    @staticmethod
    def _with_mask_tokens(corners: Tensor, mask_tokens: Tensor) -> Tensor:
        return torch.cat([corners, mask_tokens.expand(*corners.shape[:2], -1, -1)], dim=2)
