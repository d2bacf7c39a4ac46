"""Small networks that turn features into predictions."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers of widths `sizes` with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            features = F.relu(layer(features))
        return self.layers[-1](features)


class GroupLinear(nn.Module):
    """One linear layer per query group, held as one tensor: weight (G, out, in), bias (G, out)."""

    def __init__(self, groups: int, features_in: int, features_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, features_out, features_in))
        self.bias = nn.Parameter(torch.empty(groups, features_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(fan in), as nn.Linear."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, groups: int) -> Tensor:
        """Features (groups, N, in), or (1, N, in) for all, through the first `groups` layers: (groups, N, out)."""
        weight, bias = self.weight[:groups], self.bias[:groups]
        if groups == 1:
            return F.linear(features, weight[0], bias[0])
        return torch.baddbmm(bias.unsqueeze(1), features.expand(groups, -1, -1), weight.transpose(1, 2))


class GroupNorm(nn.Module):
    """One layer norm per query group: scale and shift (G, D)."""

    def __init__(self, groups: int, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))
        self.dim, self.eps = dim, eps

    def forward(self, features: Tensor, groups: int) -> Tensor:
        """Normalise features (groups, N, D) over D."""
        if groups == 1:
            return F.layer_norm(features, (self.dim,), self.weight[0], self.bias[0], self.eps)
        normed = F.layer_norm(features, (self.dim,), eps=self.eps)
        return torch.addcmul(self.bias[:groups].unsqueeze(1), normed, self.weight[:groups].unsqueeze(1))


class GroupMLP(nn.Module):
    """One MLP per query group."""

    def __init__(self, groups: int, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GroupLinear(groups, a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, features: Tensor, groups: int) -> Tensor:
        for layer in self.layers[:-1]:
            features = F.relu(layer(features, groups))
        return self.layers[-1](features, groups)
