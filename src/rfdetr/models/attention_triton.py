"""The reading of `DeformableAttention` as one Triton kernel per direction; importing this module needs Triton."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = tuple[tuple[int, int], ...]


def read_memory(
    value: Tensor,
    offsets: Tensor,
    logits: Tensor,
    reference_cxcywh: Tensor,
    shapes: Sequence[tuple[int, int]],
    valid_ratios: Tensor | None,
    heads: int,
) -> Tensor:
    """Each query's weighted sum of samples around its box, (B, Q, D) in the dtype of `value`.

    Places, weights and sums are float32 whatever the dtypes (float64 if `value` is). Gradients flow to the first four;
    where torch asks for deterministic algorithms, none depends on the order in which threads finish.

    Args:
        value: (B, S, D), the row-major maps of all levels one after the other, heads side by side in D.
        offsets: (B, Q, heads * L * P * 2), each (x, y) in halves of the box divided by P.
        logits: (B, Q, heads * L * P); the softmax of each head is taken here.
        reference_cxcywh: (B, Q, 4), relative to the valid part of each image.
        shapes: (height, width) of each level.
        valid_ratios: (B, L, 2), share of each map that is valid, as (x, y).
    """
    tensors = (value, offsets, logits, reference_cxcywh, valid_ratios)
    return _ReadMemory.apply(tuple((height, width) for height, width in shapes), heads, *tensors)


class _ReadMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shapes: Shapes, heads: int, *tensors: Any) -> Tensor:
        inputs: Sequence[Any] = tuple(one if one is None else one.contiguous() for one in tensors)
        ctx.save_for_backward(*inputs)
        ctx.shapes, ctx.heads = shapes, heads
        value, offsets = inputs[:2]
        read = value.new_empty((*offsets.shape[:2], value.shape[-1]))
        _launch(_forward_kernel, inputs, (read,), shapes, heads)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        inputs, shapes, heads = ctx.saved_tensors, ctx.shapes, ctx.heads
        value, offsets, logits, reference, _ = inputs
        grad, exact = grad_outputs[0].contiguous(), _exact(value)
        _, _, for_value, _, _, for_reference, _ = ctx.needs_input_grad
        # The kernel adds to the value's gradient by atomics, in no fixed order; all else has one writer.
        in_order = torch.are_deterministic_algorithms_enabled()
        grad_value = torch.zeros_like(value, dtype=exact) if for_value and not in_order else None
        grad_offsets, grad_logits = torch.empty_like(offsets), torch.empty_like(logits)
        by_head = (*reference.shape[:2], heads, 4)
        grad_reference = reference.new_empty(by_head, dtype=exact) if for_reference else None
        results = (grad, grad_value, grad_offsets, grad_logits, grad_reference)
        _launch(_backward_kernel, inputs, results, shapes, heads)
        if for_value and in_order:
            grad_value = _value_gradient(inputs, shapes, heads, grad)
        if grad_value is not None:
            grad_value = grad_value.to(value.dtype)
        if grad_reference is not None:
            grad_reference = grad_reference.sum(2).to(reference.dtype)
        return None, None, grad_value, grad_offsets, grad_logits, grad_reference, None


def _exact(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _launch(kernel: Any, inputs: Sequence[Any], others: Sequence[Any], shapes: Shapes, heads: int) -> None:
    """Run a kernel: a program per block of queries, head and image."""
    value, _, logits = inputs[:3]
    batch, cells, dim = value.shape
    length, columns, block = logits.shape[1], logits.shape[2] // heads, 32
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(value):
        kernel[triton.cdiv(length, block), heads, batch](
            *(*inputs, _size_table(shapes, value.device), *others, length, cells),
            HEADS=heads,
            LEVELS=len(shapes),
            POINTS=columns // len(shapes),
            WIDTH=dim // heads,
            BLOCK_Q=block,
            BLOCK_C=triton.next_power_of_2(dim // heads),
            BLOCK_K=triton.next_power_of_2(columns),
            EXACT=tl.float64 if _exact(value) == torch.float64 else tl.float32,
        )


# Never dropped, as CUDA graphs keep the address. Sizes as arguments would have the kernels compiled for many of them.
@functools.cache
def _size_table(shapes: Shapes, device: torch.device) -> Tensor:
    """Height, width and first cell of each level, (L, 3)."""
    starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
    table = [(*shape, start) for shape, start in zip(shapes, starts, strict=True)]
    return torch.tensor(table, dtype=torch.int32, device=device)


def _value_gradient(inputs: Sequence[Any], shapes: Shapes, heads: int, grad: Tensor) -> Tensor:
    """The gradient (B, S, D) of the value, added up in a fixed order: `index_put_` keeps one in deterministic mode."""
    exact = _exact(inputs[0])
    value, offsets, logits, reference = (one.to(exact) for one in inputs[:4])
    (batch, length, _), cells = grad.shape, value.shape[1]
    offsets = offsets.view(batch, length, heads, len(shapes), -1, 2)
    share = logits.view(batch, length, heads, -1).softmax(-1).view(offsets.shape[:-1])
    boxes = reference[:, :, None, None, None]
    places = boxes[..., :2] + offsets * boxes[..., 2:] * (0.5 / offsets.shape[4])
    if inputs[4] is not None:
        places = places * inputs[4][:, None, None, :, None]
    grad = grad.to(exact).view(batch, length, heads, 1, -1)
    head = torch.arange(heads, device=value.device).view(-1, 1)
    first = torch.arange(batch, device=value.device).view(-1, 1, 1, 1) * cells
    total = torch.zeros_like(value).view(batch * cells * heads, -1)
    for level, (height, width) in enumerate(shapes):
        at = places[:, :, :, level] * torch.tensor([width, height], device=value.device) - 0.5
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = at[..., 0].floor() + right, at[..., 1].floor() + below
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            part = (1 - (at[..., 0] - x).abs()) * (1 - (at[..., 1] - y).abs()) * share[:, :, :, level]
            cell = first + torch.where(inside, y, 0).long() * width + torch.where(inside, x, 0).long()
            added = torch.where(inside, part, 0).unsqueeze(-1) * grad
            total.index_put_(((cell * heads + head).flatten(),), added.flatten(0, -2), accumulate=True)
        first = first + height * width
    return total.view_as(value)


@triton.jit
def _shares(logits, present, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr):
    """Softmax of each row, pointers (BLOCK_Q,) -> (BLOCK_Q, BLOCK_K), zero beyond COLUMNS."""
    column = tl.arange(0, BLOCK_K)[None, :]
    score = tl.load(logits[:, None] + column, mask=present[:, None] & (column < COLUMNS), other=0.0).to(EXACT)
    score = tl.where(column < COLUMNS, score, float("-inf"))
    score = tl.exp(score - tl.max(score, 1, keep_dims=True))
    return score / tl.sum(score, 1, keep_dims=True)


@triton.jit
def _pair(pointers, present, EXACT: tl.constexpr):
    """What stands at the pointers and right after them."""
    first = tl.load(pointers, mask=present, other=0.0)
    return first.to(EXACT), tl.load(pointers + 1, mask=present, other=0.0).to(EXACT)


@triton.jit
def _level(sizes, ratios, first, level, EXACT: tl.constexpr):
    """Height, width and first cell of a level, and the valid share of its width and height (from row `first` on)."""
    height, width, start = tl.load(sizes + 3 * level), tl.load(sizes + 3 * level + 1), tl.load(sizes + 3 * level + 2)
    if ratios is None:
        ratio_x, ratio_y = tl.full((), 1.0, EXACT), tl.full((), 1.0, EXACT)
    else:
        ratio_x, ratio_y = _pair(ratios + 2 * (first + level), True, EXACT)
    return height, width, start, ratio_x, ratio_y


@triton.jit
def _cell(place, size):
    """Lower of the two cells around a relative place, and the share of the upper one."""
    at = place * size - 0.5
    # What no integer holds, and NaN, is outside too, as in `grid_sample`.
    at = tl.where((at >= -1) & (at < size), at, -2.0)
    low = tl.floor(at)
    return low.to(tl.int32), at - low


@triton.jit
def _corner(left, top, CORNER: tl.constexpr, width, height, present):
    """One of the four cells around each place and whether it exists."""
    x, y = left + CORNER % 2, top + CORNER // 2
    return y * width + x, present & (x >= 0) & (x < width) & (y >= 0) & (y < height)


@triton.jit(do_not_specialize=["length", "cells"])
def _forward_kernel(
    value, offsets, logits, reference, ratios, sizes, read, length, cells,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    column, channel = tl.arange(0, BLOCK_K)[None, :], tl.arange(0, BLOCK_C)[None, :]
    present, kept = query < length, channel < WIDTH
    row = image * length + query
    own = (row * HEADS + head) * LEVELS * POINTS
    shares = _shares(logits + own, present, LEVELS * POINTS, BLOCK_K, EXACT)
    box_x, box_y = _pair(reference + row * 4, present, EXACT)
    box_w, box_h = _pair(reference + row * 4 + 2, present, EXACT)
    total = tl.zeros((BLOCK_Q, BLOCK_C), EXACT)
    for level in range(LEVELS):
        height, width, start, ratio_x, ratio_y = _level(sizes, ratios, image * LEVELS, level, EXACT)
        maps = value + ((image * cells + start) * HEADS + head) * WIDTH + channel
        for point in tl.static_range(POINTS):
            number = level * POINTS + point
            share = tl.sum(tl.where(column == number, shares, 0.0), 1)
            step_x, step_y = _pair(offsets + 2 * (own + number), present, EXACT)
            left, right = _cell((box_x + step_x * box_w * (0.5 / POINTS)) * ratio_x, width)
            top, below = _cell((box_y + step_y * box_h * (0.5 / POINTS)) * ratio_y, height)
            for corner in tl.static_range(4):
                cell, inside = _corner(left, top, corner, width, height, present)
                part = (right if corner % 2 else 1 - right) * (below if corner // 2 else 1 - below) * share
                at = maps + cell[:, None] * (HEADS * WIDTH)
                total += part[:, None] * tl.load(at, mask=inside[:, None] & kept, other=0.0).to(EXACT)
    tl.store(read + ((row * HEADS + head) * WIDTH)[:, None] + channel, total, mask=present[:, None] & kept)


@triton.jit(do_not_specialize=["length", "cells"])
def _backward_kernel(
    value, offsets, logits, reference, ratios, sizes,
    grad, grad_value, grad_offsets, grad_logits, grad_reference, length, cells,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    column, channel = tl.arange(0, BLOCK_K)[None, :], tl.arange(0, BLOCK_C)[None, :]
    present, kept = query < length, channel < WIDTH
    row = image * length + query
    own = (row * HEADS + head) * LEVELS * POINTS
    shares = _shares(logits + own, present, LEVELS * POINTS, BLOCK_K, EXACT)
    box_x, box_y = _pair(reference + row * 4, present, EXACT)
    box_w, box_h = _pair(reference + row * 4 + 2, present, EXACT)
    wanted = grad + ((row * HEADS + head) * WIDTH)[:, None] + channel
    wanted = tl.load(wanted, mask=present[:, None] & kept, other=0.0).to(EXACT)
    scores = tl.zeros((BLOCK_Q, BLOCK_K), EXACT)
    sum_x, sum_y = tl.zeros((BLOCK_Q,), EXACT), tl.zeros((BLOCK_Q,), EXACT)
    sum_w, sum_h = tl.zeros((BLOCK_Q,), EXACT), tl.zeros((BLOCK_Q,), EXACT)
    for level in range(LEVELS):
        height, width, start, ratio_x, ratio_y = _level(sizes, ratios, image * LEVELS, level, EXACT)
        first = ((image * cells + start) * HEADS + head) * WIDTH + channel
        for point in tl.static_range(POINTS):
            number = level * POINTS + point
            share = tl.sum(tl.where(column == number, shares, 0.0), 1)
            step_x, step_y = _pair(offsets + 2 * (own + number), present, EXACT)
            left, right = _cell((box_x + step_x * box_w * (0.5 / POINTS)) * ratio_x, width)
            top, below = _cell((box_y + step_y * box_h * (0.5 / POINTS)) * ratio_y, height)
            score, slope_x, slope_y = tl.zeros_like(share), tl.zeros_like(share), tl.zeros_like(share)
            for corner in tl.static_range(4):
                cell, inside = _corner(left, top, corner, width, height, present)
                across, down = right if corner % 2 else 1 - right, below if corner // 2 else 1 - below
                at, there = first + cell[:, None] * (HEADS * WIDTH), inside[:, None] & kept
                alike = tl.sum(wanted * tl.load(value + at, mask=there, other=0.0).to(EXACT), 1)
                score += across * down * alike
                slope_x += down * (alike if corner % 2 else -alike)
                slope_y += across * (alike if corner // 2 else -alike)
                if grad_value is not None:
                    added = (across * down * share)[:, None] * wanted
                    tl.atomic_add(grad_value + at, added, mask=there, sem="relaxed")
            scores = tl.where(column == number, score[:, None], scores)
            slope_x, slope_y = slope_x * share * width * ratio_x, slope_y * share * height * ratio_y
            steps = grad_offsets + 2 * (own + number)
            tl.store(steps, slope_x * box_w * (0.5 / POINTS), mask=present)
            tl.store(steps + 1, slope_y * box_h * (0.5 / POINTS), mask=present)
            sum_x, sum_y = sum_x + slope_x, sum_y + slope_y
            sum_w, sum_h = sum_w + slope_x * step_x * (0.5 / POINTS), sum_h + slope_y * step_y * (0.5 / POINTS)
    scores = shares * (scores - tl.sum(shares * scores, 1, keep_dims=True))
    tl.store(grad_logits + own[:, None] + column, scores, mask=present[:, None] & (column < LEVELS * POINTS))
    if grad_reference is not None:
        box = grad_reference + (row * HEADS + head) * 4
        tl.store(box, sum_x, mask=present)
        tl.store(box + 1, sum_y, mask=present)
        tl.store(box + 2, sum_w, mask=present)
        tl.store(box + 3, sum_h, mask=present)
