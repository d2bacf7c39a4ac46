"""The DINOv2 encoder with windowed attention: images in, feature maps of chosen depths out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rfdetr.models.attention import SelfAttention
from rfdetr.models.backward import feed_forward

EPS = 1e-6


def split_windows(tokens: Tensor, windows: int) -> Tensor:
    """Cut a grid (B, h, w, D) into windows x windows rectangles: (B * windows^2, h/windows * w/windows, D)."""
    batch, height, width, dim = tokens.shape
    # Two steps of rank 4 instead of one of rank 6, which several export targets refuse.
    rows = tokens.reshape(batch * windows, height // windows, windows, width // windows * dim).transpose(1, 2)
    return rows.reshape(batch * windows * windows, height // windows * (width // windows), dim)


def join_windows(tokens: Tensor, windows: int, height: int, width: int) -> Tensor:
    """Undo `split_windows`: (B * windows^2, h/windows * w/windows, D) -> (B, h, w, D)."""
    dim = tokens.shape[-1]
    rows = tokens.reshape(-1, windows, height // windows, width // windows * dim).transpose(1, 2)
    return rows.reshape(-1, height, width, dim)


def resize_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Resample a position table (1, 1 + side^2, D) to a grid: (1, 1 + height*width, D); entry 0 is kept.

    Antialiased bicubic, also when enlarging: its kernel differs from the plain one at every size but the identity.
    """
    side = math.isqrt(int(table.shape[1]) - 1)
    if (height, width) == (side, side):
        return table
    grid = table[:, 1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


class Block(nn.Module):
    """Pre-norm transformer block with layer scale; `drop_path` is the chance that a residual row is left out."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attention = SelfAttention(dim, heads)
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp_in = nn.Linear(dim, 4 * dim)
        self.mlp_out = nn.Linear(4 * dim, dim)
        self.scale2 = nn.Parameter(torch.ones(dim))
        self.drop_path = 0.0

    def forward(self, tokens: Tensor, merge: int) -> Tensor:
        """Tokens (B * windows^2, N, D); attention spans `merge` rows: one window, or all windows of an image."""
        rows, length, dim = tokens.shape
        normed = self.norm1(tokens).view(rows // merge, merge * length, dim)
        tokens = self._add(tokens, self.attention(normed).view(rows, length, dim), self.scale1)
        return self._add(tokens, feed_forward(self.norm2(tokens), self.mlp_in, self.mlp_out, "gelu"), self.scale2)

    def _add(self, tokens: Tensor, change: Tensor, scale: Tensor) -> Tensor:
        if self.training and self.drop_path > 0:
            keep = 1.0 - self.drop_path
            kept = torch.empty(len(tokens), 1, 1, device=tokens.device, dtype=change.dtype).bernoulli_(keep)
            change = change * (kept / keep)
        return torch.addcmul(tokens, change, scale)


class Encoder(nn.Module):
    """Vision transformer whose blocks attend inside windows, but for those that follow a tap.

    Args:
        taps: feature maps are taken after these numbers of blocks; the block that follows a tap is global.
        position_side: side of the stored position table in patches.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        depth: int,
        patch_size: int,
        num_windows: int,
        position_side: int,
        taps: tuple[int, ...],
        channels: int = 3,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size, self.num_windows, self.taps, self.checkpointing = patch_size, num_windows, taps, checkpointing
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + position_side**2, dim))
        # Stored in every published file, read by nothing.
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        # Blocks behind the last tap exist in the files, but nothing reads their output.
        for block in self.blocks[max(taps) :]:
            block.requires_grad_(False)
        self.norm = nn.LayerNorm(dim, EPS)
        self._resized: tuple[object, Tensor] | None = None

    @property
    def encoder(self) -> Encoder:
        """Itself: what older scripts find one level deeper."""
        return self

    @property
    def _out_feature_channels(self) -> list[int]:
        """Width of each map, by its older name."""
        return [self.norm.normalized_shape[0]] * len(self.taps)

    def positions_of(self, height: int, width: int) -> Tensor:
        """The position table at the size of a grid, (1, 1 + height * width, D); it is kept where nothing learns."""
        if torch.is_grad_enabled():
            return resize_positions(self.positions, height, width)
        table, kept = self.positions, self._resized
        key = (height, width, id(table), table._version, table.device, table.dtype)
        if kept is None or kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._resized = key, resize_positions(table, height, width)
        return kept[1]

    @torch.no_grad()
    def resize_position_table(self, side: int) -> None:
        """Store the position table for another grid side."""
        resized = resize_positions(self.positions, side, side).clone()
        self.positions = nn.Parameter(resized, requires_grad=self.positions.requires_grad)

    def freeze(self, first: bool | int) -> None:
        """Stop the training of the encoder (True), or of its patches, positions and `first` blocks.

        No gradient is computed below the first trained tensor, so nothing is kept in memory for it either.
        """
        if first is True:
            self.requires_grad_(False)
        elif first:
            for part in (self.patches, self.class_token, self.positions, *self.blocks[:first]):
                part.requires_grad_(False)

    def set_drop_path(self, rate: float) -> None:
        """Drop residual rows with a chance that grows linearly from 0 in the first block to `rate` in the last."""
        for block, chance in zip(self.blocks, torch.linspace(0, rate, len(self.blocks)).tolist(), strict=True):
            block.drop_path = chance

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> one map (B, D, H/patch, W/patch) per tap.

        Raises:
            ValueError: H or W is not a multiple of patch size x windows.
        """
        tokens, (height, width) = self.embed(images)
        merge = self.num_windows**2
        maps = [self._to_map(tokens, height, width)] if 0 in self.taps else []
        for index, block in enumerate(self.blocks[: max(self.taps)]):
            span = merge if index in self.taps else 1
            if self.checkpointing and self.training:
                tokens = checkpoint(block, tokens, span, use_reentrant=False)
            else:
                tokens = block(tokens, span)
            if index + 1 in self.taps:
                maps.append(self._to_map(tokens, height, width))
        return maps

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Windowed tokens (B * windows^2, 1 + patches per window, D), class token first, and the patch grid."""
        block = self.patch_size * self.num_windows
        if images.shape[-2] % block or images.shape[-1] % block:
            raise ValueError(f"Backbone requires input shape to be divisible by {block}, but got {tuple(images.shape)}")
        grid = self.patches(images).permute(0, 2, 3, 1)
        _, height, width, dim = grid.shape
        positions = self.positions_of(height, width)
        grid = grid + positions[:, 1:].view(1, height, width, dim)
        windows = split_windows(grid, self.num_windows)
        first = (self.class_token + positions[:, :1]).to(windows.dtype).expand(windows.shape[0], 1, dim)
        return torch.cat((first, windows), dim=1), (height, width)

    def _to_map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return join_windows(self.norm(tokens)[:, 1:], self.num_windows, height, width).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Backbone:
    """The encoder one level higher, where older scripts look for it."""

    encoder: Encoder
