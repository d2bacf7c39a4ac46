"""Query selection and decoder of LW-DETR (arXiv 2406.03459): start boxes from the memory, then refinement."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rfdetr.models.attention import DeformableAttention, QueryAttention
from rfdetr.models.backward import feed_forward, through_few
from rfdetr.models.boxes import refine
from rfdetr.models.heads import MLP, GroupLinear, GroupMLP, GroupNorm

Shapes = tuple[tuple[int, int], ...]


class Padding(NamedTuple):
    """Where a batch of differently sized images is padding, on the grid of the memory.

    mask (B, S) is True on padding, counts (B, L, 2) the valid cells as (x, y), ratios (B, L, 2) their share of the map.
    """

    mask: Tensor
    counts: Tensor
    ratios: Tensor


def padding_of(mask: Tensor, shapes: Shapes) -> Padding:
    """Bring a pixel mask (B, H, W), True on padding, to the grid: a cell is valid when its top-left pixel is."""
    masks, counts, ratios = [], [], []
    for height, width in shapes:
        rows = torch.arange(height, device=mask.device) * mask.shape[1] // height
        columns = torch.arange(width, device=mask.device) * mask.shape[2] // width
        level = mask[:, rows][:, :, columns]
        count = torch.stack(((~level[:, 0]).sum(1), (~level[:, :, 0]).sum(1)), dim=-1).float()
        masks.append(level.flatten(1))
        counts.append(count)
        ratios.append(count / torch.tensor([width, height], device=mask.device))
    return Padding(torch.cat(masks, 1), torch.stack(counts, 1), torch.stack(ratios, 1))


def grid_boxes(shapes: Shapes, device: torch.device, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One small box per cell of every level and whether it may be proposed, (1 or B, S, 4) and (1 or B, S).

    Float32 always: the limits of the valid range decide which cells of large grids take part.
    """
    boxes = []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=device) + 0.5,
            torch.arange(width, dtype=torch.float32, device=device) + 0.5,
            indexing="ij",
        )
        size = torch.tensor([[width, height]], device=device) if counts is None else counts[:, level]
        centre = torch.stack((x, y), -1).view(1, -1, 2) / size.view(-1, 1, 2)
        boxes.append(torch.cat((centre, torch.full_like(centre, 0.05 * 2.0**level)), -1))
    grid = torch.cat(boxes, 1)
    valid = ((grid > 0.01) & (grid < 0.99)).all(-1)
    return grid, valid


def _masked_grid(shapes: Shapes, device: torch.device, padding: Padding | None = None) -> tuple[Tensor, Tensor]:
    """`grid_boxes` with zeros where a cell may not be proposed, as those of padding."""
    grid, valid = grid_boxes(shapes, device, None if padding is None else padding.counts)
    valid = valid if padding is None else valid & ~padding.mask
    return grid.masked_fill(~valid.unsqueeze(-1), 0.0), valid


@functools.lru_cache(maxsize=64)
def _unpadded_grid(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """`_masked_grid` without padding, and the valid cells only if some cell is not."""
    with torch.inference_mode(False):
        grid, valid = _masked_grid(shapes, device)
        return grid, None if bool(valid.all()) else valid


class Proposed(NamedTuple):
    """The selected cells: index and score (G, B, k), features (G, B*k, D), boxes and class logits (B, G*k, .)."""

    index: Tensor
    score: Tensor
    features: Tensor
    boxes: Tensor
    logits: Tensor


class Proposals(nn.Module):
    """Score every cell of the memory per query group and turn the best k into start boxes."""

    def __init__(self, dim: int, groups: int, num_queries: int, num_logits: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.embed = GroupLinear(groups, dim, dim)
        self.norm = GroupNorm(groups, dim, 1e-5)
        self.classes = GroupLinear(groups, dim, num_logits)
        self.boxes = GroupMLP(groups, dim, dim, dim, 4)

    def forward(self, memory: Tensor, shapes: Shapes, groups: int, padding: Padding | None = None) -> Proposed:
        """Memory (B, S, D) -> the best min(num_queries, S) cells of each of the first `groups` groups."""
        batch, cells, dim = memory.shape
        if padding is None:
            # What is compiled knows such constants itself, and cannot ask whether some cell is not valid.
            compiled = torch.compiler.is_compiling()
            grid, valid = (_masked_grid if compiled else _unpadded_grid)(shapes, memory.device)
        else:
            grid, valid = _masked_grid(shapes, memory.device, padding)
        rows = memory if valid is None else memory.masked_fill(~valid.unsqueeze(-1), 0.0)
        rows = rows.reshape(1, batch * cells, dim)
        # Only the chosen cells receive a gradient, so the ranking is computed without one and these once more.
        with torch.no_grad():
            best = self.classes(self._features(rows, groups), groups).amax(-1).view(groups, batch, cells)
        count = min(self.num_queries, cells)
        score, index = best.topk(count, dim=-1)
        start = torch.arange(batch, device=memory.device).view(1, batch, 1) * cells
        chosen = rows[0].index_select(0, (index + start).view(-1)).view(groups, batch * count, dim)
        features = self._features(chosen, groups)
        reference = grid.expand(batch, -1, -1).reshape(-1, 4).index_select(0, (index + start).view(-1))
        delta = through_few(self.boxes, features, groups)
        boxes = refine(delta, reference.view(groups, batch * count, 4).to(delta.dtype))
        logits = self.classes(features, groups)
        return Proposed(index, score, features, by_image(boxes, batch), by_image(logits, batch))

    def _features(self, rows: Tensor, groups: int) -> Tensor:
        return self.norm(self.embed(rows, groups), groups)


def by_image(grouped: Tensor, batch: int) -> Tensor:
    """(G, B*k, X) -> (B, G*k, X), group 0 first."""
    groups, _, width = grouped.shape
    return grouped.view(groups, batch, -1, width).transpose(0, 1).reshape(batch, -1, width)


def sine_embedding(boxes_cxcywh: Tensor, dim: int) -> Tensor:
    """Interleaved sines and cosines of y, x, w, h, `dim` numbers each: (B, Q, 4) -> (B, Q, 4 * dim)."""
    ordered = boxes_cxcywh[..., [1, 0, 2, 3]]
    periods = _periods.__wrapped__ if torch.compiler.is_compiling() else _periods
    angle = (2 * math.pi * ordered).unsqueeze(-1) / periods(dim, boxes_cxcywh.device, boxes_cxcywh.dtype)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)


@functools.lru_cache(maxsize=64)
def _periods(dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return 10000 ** (torch.arange(dim // 2, device=device, dtype=dtype) * (2 / dim))


class DecoderLayer(nn.Module):
    """Post-norm layer: queries look at each other, then at the memory, then through a feed-forward network."""

    def __init__(self, dim: int, self_heads: int, cross_heads: int, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attention = QueryAttention(dim, self_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, cross_heads, levels, points)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, hidden)
        self.mlp_out = nn.Linear(hidden, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        groups: int,
        padding: Padding | None,
    ) -> Tensor:
        """Queries and position (B, G*Q, D), reference boxes (B, G*Q, 4); groups never see each other."""
        batch, length, dim = queries.shape
        fold = (batch * groups, length // groups, dim)
        mixed = self.self_attention(queries.reshape(fold), (queries + position).reshape(fold))
        queries = self.norm1(queries + mixed.view(batch, length, dim))
        mask, ratios = (None, None) if padding is None else (padding.mask, padding.ratios)
        read = self.cross_attention(queries + position, reference, memory, shapes, mask, ratios)
        queries = self.norm2(queries + read)
        return self.norm3(queries + feed_forward(queries, self.mlp_in, self.mlp_out, "relu"))


class Decoder(nn.Module):
    """Layers over one fixed set of reference boxes; `norm` is applied to what leaves, not to what goes on."""

    def __init__(
        self,
        dim: int,
        layers: int,
        self_heads: int,
        cross_heads: int,
        levels: int,
        points: int,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, self_heads, cross_heads, levels, points, hidden) for _ in range(layers)
        )
        self.position = MLP(2 * dim, dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        groups: int = 1,
        padding: Padding | None = None,
        last_only: bool = False,
        follow: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Refine queries (B, G*Q, D) around boxes (B, G*Q, 4): normed outputs (layers or 1, B, G*Q, D).

        Args:
            follow: what comes behind each layer: its number, queries and their position in, queries out.
        """
        seen = reference if padding is None else reference * padding.ratios[:, :1].repeat(1, 1, 2)
        position = self.position(sine_embedding(seen, queries.shape[-1] // 2))
        outputs = []
        for number, layer in enumerate(self.layers):
            queries = layer(queries, position, reference, memory, shapes, groups, padding)
            if follow is not None:
                queries = follow(number, queries, position)
            outputs.append(queries)
        return self.norm(torch.stack(outputs[-1:] if last_only else outputs))
