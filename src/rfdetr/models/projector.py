"""The projector: feature maps of the encoder in, one fused map per pyramid level out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
# Output cells per patch and side at each level.
LEVEL_SCALE = {"P3": 2.0, "P4": 1.0, "P5": 0.5}


def to_memory(maps: list[Tensor]) -> Tensor:
    """Maps (B, D, h, w) of all levels as one row-major sequence (B, S, D)."""
    return torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every pixel of a map (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, channel norm, activation."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, relu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm = ChannelNorm(channels_out)
        self.activation = F.relu if relu else F.silu

    def forward(self, maps: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(maps)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions without a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3)

    def forward(self, maps: Tensor) -> Tensor:
        return self.second(self.first(maps))


class Fuse(nn.Module):
    """C2f block: split, a chain of bottlenecks, and everything joined again."""

    def __init__(self, channels_in: int, channels_out: int, bottlenecks: int = 3) -> None:
        super().__init__()
        half = channels_out // 2
        self.enter = ConvNorm(channels_in, 2 * half, 1)
        self.bottlenecks = nn.ModuleList(Bottleneck(half) for _ in range(bottlenecks))
        self.leave = ConvNorm((2 + bottlenecks) * half, channels_out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        parts = list(self.enter(maps).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.leave(torch.cat(parts, dim=1))


class Level(nn.Module):
    """One pyramid level: every map resampled to its grid, joined in tap order, fused, normalised."""

    def __init__(self, name: str, dim: int, taps: int, width: int) -> None:
        super().__init__()
        if name == "P3":
            self.resample = nn.ModuleList(nn.ConvTranspose2d(dim, dim // 2, 2, 2) for _ in range(taps))
        elif name == "P5":
            self.resample = nn.ModuleList(ConvNorm(dim, dim, 3, stride=2, relu=True) for _ in range(taps))
        else:
            self.resample = nn.ModuleList(nn.Identity() for _ in range(taps))
        self.fuse = Fuse((dim // 2 if name == "P3" else dim) * taps, width)
        self.norm = ChannelNorm(width)

    def forward(self, maps: list[Tensor]) -> Tensor:
        resampled = [resample(one) for resample, one in zip(self.resample, maps, strict=True)]
        return self.norm(self.fuse(torch.cat(resampled, dim=1)))


class Projector(nn.Module):
    """Fuse the encoder's maps (B, D, gh, gw) into one map (B, width, h, w) per level of `levels`, in that order."""

    def __init__(self, dim: int, taps: int, width: int, levels: tuple[str, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(name, dim, taps, width) for name in levels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [level(maps) for level in self.levels]
