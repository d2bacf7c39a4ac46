"""Self attention with one packed projection, and multi-scale deformable attention (arXiv 2010.04159)."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from importlib.metadata import version

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


@functools.cache
def is_available(device_type: str) -> bool:
    """Whether the kernels of `attention_triton` run: on "cuda", and with TRITON_INTERPRET=1 also on "cpu"."""
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        away = _difference(device_type)
    except Exception as error:
        # Compilers, headers and drivers fail in many types; the network itself works.
        text = f"Triton is installed but fails (it needs a C compiler and Python's headers): {error!r}"
        warnings.warn(f"{text}; deformable attention goes on without it, slower", stacklevel=3)
        return False
    if not away < 1e-3:
        text = f"the kernels that Triton {version('triton')} makes here are wrong by {away:.1g}"
        warnings.warn(f"{text}; deformable attention goes on without them, slower", stacklevel=3)
    return away < 1e-3


@torch.no_grad()
def _difference(device_type: str) -> float:
    """What the kernels read in a small memory, against what PyTorch's operators read."""
    from rfdetr.models.attention_triton import read_memory

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = DeformableAttention(32, 2, 1, 2)
        query, memory, boxes = torch.randn(1, 5, 32), torch.randn(1, 12, 32), torch.rand(1, 5, 4)
    layer = layer.to(device_type)
    layer.fused = False
    query, memory, boxes = (one.to(device_type) for one in (query, memory, boxes))
    expected = layer(query, boxes, memory, [(3, 4)])
    inputs = (layer.value(memory), layer.offsets(query), layer.weights(query), boxes)
    return float((layer.output(read_memory(*inputs, [(3, 4)], None, 2)) - expected).abs().max())


def _is_recorded() -> bool:
    """Whether operators are being recorded for a file or a compiler, which see nothing of a kernel."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


class DeformableAttention(nn.Module):
    """Each query reads `points` places per head and level, placed relative to its reference box.

    Args:
        levels: number of feature maps.
        points: sampling points per head and level.
    """

    fused: bool = True
    """Read the memory with Triton's kernels where they run; False for PyTorch's operators everywhere."""

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
        logits, offsets = self.weights(query), self.offsets(query)
        if self.fused and not _is_recorded() and is_available(value.device.type):
            from rfdetr.models.attention_triton import read_memory

            read = read_memory(value, offsets, logits, reference_cxcywh, shapes, valid_ratios, self.heads)
            return self.output(read)
        weights = logits.view(batch, length, self.heads, -1).softmax(-1)
        offsets = offsets.view(batch, length, -1, 2)
        centre, size = reference_cxcywh.unsqueeze(2).split(2, -1)
        places = torch.addcmul(centre, offsets, size * (0.5 / self.points))
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
