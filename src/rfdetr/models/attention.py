"""Self attention with one packed projection, and multi-scale deformable attention (arXiv 2010.04159)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Attention of tokens (B, N, D) among themselves; query, key and value come from one fused projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, dim = tokens.shape
        packed = self.qkv(tokens).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, dim))


class QueryAttention(nn.Module):
    """Self attention of decoder queries: the position is added to query and key, never to the value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, with_position: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Mix `tokens` (B, N, D) by the attention of `with_position` (B, N, D) = tokens + position.

        Args:
            allowed: (N, N) bool, which tokens each one sees; None for all.
        """
        batch, length, dim = tokens.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        query_key = F.linear(with_position, weight[: 2 * dim], bias[: 2 * dim])
        value = F.linear(tokens, weight[2 * dim :], bias[2 * dim :])
        query, key = query_key.view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        value = value.view(batch, length, self.heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, dim))


class DeformableAttention(nn.Module):
    """Each query reads `points` places per head and level, placed relative to its reference box.

    Args:
        levels: number of feature maps.
        points: sampling points per head and level.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(
        self,
        query: Tensor,
        reference_cxcywh: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        padding: Tensor | None = None,
        valid_ratios: Tensor | None = None,
    ) -> Tensor:
        """Read the memory around each query's box.

        Args:
            query: (B, Q, D), position already added.
            reference_cxcywh: (B, Q, 4), relative to the valid part of each image.
            memory: (B, S, D), the row-major maps of all levels one after the other.
            shapes: (height, width) of each level.
            padding: (B, S), True where the memory is padding.
            valid_ratios: (B, L, 2), share of each map that is valid, as (x, y).
        """
        batch, length, _ = query.shape
        value = self.value(memory)
        if padding is not None:
            value = value.masked_fill(padding.unsqueeze(-1), 0.0)
        weights = self.weights(query).view(batch, length, self.heads, -1).softmax(-1)
        offsets = self.offsets(query).view(batch, length, -1, 2)
        places = torch.addcmul(
            reference_cxcywh[:, :, None, :2], offsets, reference_cxcywh[:, :, None, 2:] * (0.5 / self.points)
        )
        if valid_ratios is not None:
            places = places * valid_ratios.repeat_interleave(self.points, 1).repeat(1, self.heads, 1).unsqueeze(1)
        places = (2 * places - 1).view(batch, length, self.heads, -1)
        mixed = self._read(value, places, weights, shapes)
        return self.output(mixed.transpose(1, 2))

    def _read(self, value: Tensor, places: Tensor, weights: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Weighted sum of samples: (B, S, D), places (B, Q, heads, L*P*2), weights (B, Q, heads, L*P) -> (B, D, Q)."""
        batch, length = places.shape[:2]
        dim, points, start = value.shape[-1], self.points, 0
        parts = []
        for level, (height, width) in enumerate(shapes):
            maps = value[:, start : start + height * width].transpose(1, 2)
            maps = maps.reshape(batch * self.heads, dim // self.heads, height, width)
            grid = places[..., level * points * 2 : (level + 1) * points * 2].transpose(1, 2)
            grid = grid.reshape(batch * self.heads, length, points, 2)
            share = weights[..., level * points : (level + 1) * points].transpose(1, 2)
            share = share.reshape(batch * self.heads, 1, length, points)
            samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            parts.append((samples * share).sum(-1))
            start += height * width
        return sum(parts[1:], parts[0]).view(batch, dim, length)
