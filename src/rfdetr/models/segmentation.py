"""The mask head: one feature map per decoder layer and one vector per query; their product is the mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.masks import MaskFactors, Masks


class MaskBlock(nn.Module):
    """Residual block on a map (B, D, h, w): depthwise 3x3 convolution, channel norm, linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mix = nn.Linear(dim, dim)

    def forward(self, maps: Tensor) -> Tensor:
        mixed = F.gelu(self.mix(self.norm(self.conv(maps).permute(0, 2, 3, 1))))
        return maps + mixed.permute(0, 3, 1, 2)


class MaskHead(nn.Module):
    """Masks of decoder layers and of start boxes.

    Args:
        layers: decoder layers; the map of layer i went through i blocks, that of the start boxes through none.
        ratio: input pixels per mask pixel, in each direction.
    """

    def __init__(self, dim: int, layers: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.blocks = nn.ModuleList(MaskBlock(dim) for _ in range(layers))
        self.map_output = nn.Conv2d(dim, dim, 1)
        self.query_norm = nn.LayerNorm(dim)
        self.query_in = nn.Linear(dim, 4 * dim)
        self.query_out = nn.Linear(4 * dim, dim)
        self.query_output = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        projected: Tensor,
        image_hw: tuple[int, int],
        hidden: Tensor,
        start: Tensor | None = None,
        whole: bool = False,
    ) -> list[Masks]:
        """Masks of the last layers, and behind them those of the start boxes.

        Args:
            projected: the projector's first map, (B, D, gh, gw).
            image_hw: height and width of the network input.
            hidden: outputs of the last L decoder layers, (L, B, Q, D).
            start: features of the start boxes, (B, Q', D); None leaves their masks out.
            whole: logits (B, Q, height // ratio, width // ratio), instead of their factors (`MaskFactors`) that serve
                losses, which read few points.
        """
        size = (image_hw[0] // self.ratio, image_hw[1] // self.ratio)
        # Channels last from here on: the linear layers between the convolutions read and write maps as they are.
        maps = F.interpolate(projected, size, mode="bilinear", align_corners=False)
        maps = maps.contiguous(memory_format=torch.channels_last)
        skipped, found = len(self.blocks) - len(hidden), []
        at_start = [] if start is None else [self._masks(maps, start, whole)]
        for number, block in enumerate(self.blocks):
            maps = block(maps)
            if number >= skipped:
                found.append(self._masks(maps, hidden[number - skipped], whole))
        return found + at_start

    def _vectors(self, queries: Tensor) -> Tensor:
        return self.query_output(queries + self.query_out(F.gelu(self.query_in(self.query_norm(queries)))))

    def _masks(self, maps: Tensor, hidden: Tensor, whole: bool) -> Masks:
        output = self.map_output
        features = F.linear(maps.permute(0, 2, 3, 1), output.weight.flatten(1), output.bias).permute(0, 3, 1, 2)
        if not whole:
            return MaskFactors(features, self.bias, hidden, self._vectors)
        return torch.einsum("bqc,bchw->bqhw", self._vectors(hidden), features) + self.bias
