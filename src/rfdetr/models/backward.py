"""Parts whose backward pass is written by hand: on CPUs it computes and keeps less than autograd would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Rows of hidden activations whose gradient is in memory at once.
CHUNK_ROWS = 4096


def by_hand(features: Tensor) -> bool:
    """Whether to take these ways: in a training step in single precision on a CPU.

    On a GPU launches cost more than memory traffic, and looking for rows waits for the device.
    """
    return (
        features.device.type == "cpu"
        and features.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def feed_forward(features: Tensor, first: nn.Linear, last: nn.Linear, activation: str) -> Tensor:
    """Two linear layers with "relu" or "gelu" between them, (..., D) -> (..., D)."""
    if by_hand(features):
        return _FeedForward.apply(features, first.weight, first.bias, last.weight, last.bias, activation)
    hidden = first(features)
    if activation == "relu":
        return last(F.relu(hidden))
    # The largest tensor of the network: without gradients it is written over, which spares fresh memory.
    return last(F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden))


class _FeedForward(torch.autograd.Function):
    """Keeps one hidden tensor, and has the gradients of a few of its rows at a time."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str) -> Tensor:
        rows = features.reshape(-1, features.shape[-1])
        hidden = torch.addmm(b1, rows, w1.T)
        active = hidden.relu_() if activation == "relu" else F.gelu(hidden)
        ctx.save_for_backward(rows, w1, w2, hidden)
        ctx.relu, ctx.shape = activation == "relu", features.shape
        return torch.addmm(b2, active, w2.T).view(features.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        rows, w1, w2, hidden = ctx.saved_tensors
        of_features, of_w1, of_b1, of_w2, of_b2 = ctx.needs_input_grad[:5]
        grad = grad.reshape(-1, grad.shape[-1])
        d_rows = torch.empty_like(rows) if of_features else None
        d_w1 = d_b1 = d_w2 = None
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            out, inside = grad[part], hidden[part]
            if of_w2:
                d_w2 = _add_product(d_w2, out.T, inside if ctx.relu else F.gelu(inside))
            back = out @ w2
            if ctx.relu:
                torch.ops.aten.threshold_backward.grad_input(back, inside, 0, grad_input=back)
            else:
                torch.ops.aten.gelu_backward.grad_input(back, inside, grad_input=back)
            if d_rows is not None:
                torch.mm(back, w1, out=d_rows[part])
            if of_w1:
                d_w1 = _add_product(d_w1, back.T, rows[part])
            if of_b1:
                d_b1 = back.sum(0) if d_b1 is None else d_b1.add_(back.sum(0))
        d_features = None if d_rows is None else d_rows.view(ctx.shape)
        return d_features, d_w1, d_b1, d_w2, grad.sum(0) if of_b2 else None, None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if total is None else total.addmm_(left, right)


def through_few(module: nn.Module, features: Tensor, *arguments: Any) -> Tensor:
    """A module of features (G, N, D) whose output (G, N, X) gets a gradient in few rows only, as boxes do.

    Nothing is kept of the others: those that have one are computed again in the backward pass.
    """
    if not by_hand(features):
        return module(features, *arguments)
    return _FewRows.apply(lambda rows: module(rows, *arguments), features, *module.parameters())


class _FewRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], features: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(features, *parameters)
        return run(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        features, *parameters = ctx.saved_tensors
        reached = (grad != 0).any(-1)
        # Of groups with fewer rows some are taken whose gradient is zero.
        count = int(reached.sum(1).max())
        index = reached.byte().topk(count, dim=1).indices.unsqueeze(-1)
        rows = features.gather(1, index.expand(-1, -1, features.shape[-1])).requires_grad_()
        with torch.enable_grad():
            out = ctx.run(rows)
        d_rows, *d_parameters = torch.autograd.grad(
            out, (rows, *parameters), grad.gather(1, index.expand(-1, -1, grad.shape[-1])), allow_unused=True
        )
        d_features = torch.zeros_like(features).scatter_(1, index.expand_as(d_rows), d_rows)
        return None, d_features, *d_parameters


def negative_loss(logits: Tensor) -> Tensor:
    """Sum of sigmoid(x)^2 * softplus(x), the class loss of entries without an object: (L, B, Q, C) -> (L,)."""
    if by_hand(logits):
        return _NegativeLoss.apply(logits)
    return (logits.sigmoid().square() * F.softplus(logits)).sum((1, 2, 3))


class _NegativeLoss(torch.autograd.Function):
    """Keeps the logits alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return F.softplus(logits).mul_(logits.sigmoid().square_()).sum((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        (logits,) = ctx.saved_tensors
        p = logits.sigmoid()
        # p^2 (p + 2 (1 - p) softplus)
        slope = F.softplus(logits).mul_(2 * (1 - p)).add_(p).mul_(p.square_())
        return slope.mul_(grad.view(-1, 1, 1, 1))
