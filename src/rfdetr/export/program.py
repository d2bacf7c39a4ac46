"""A graph as a program of `torch.export`, in operators that the converters for phones know."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn

from rfdetr.export.files import Request
from rfdetr.export.graph import Graph
from rfdetr.models.backbone import Encoder

aten = torch.ops.aten


def fixed_batch_size(request: Request, format: str) -> int:
    """The number of pictures that a file is asked to take.

    Raises:
        NotImplementedError: any number of them.
    """
    if request.batch_size is None or request.max_batch_size is not None:
        raise NotImplementedError(f"{format} files take one number of pictures; give batch_size, no max_batch_size")
    return request.batch_size


def trace(graph: Graph, batch_size: int) -> torch.export.ExportedProgram:
    """The program of a graph: `input` (B, 3, H, W) to a tuple of outputs in the order of `graph.names`."""
    graph = copy.deepcopy(graph)
    encoder = next(part for part in graph.modules() if isinstance(part, Encoder))
    # While tracing, a parameter is another tensor: the kept table would not be found, and be resized inside the file.
    table = encoder.positions.detach()
    del encoder.positions
    encoder.positions = table  # pyrefly: ignore
    example = graph.example(batch_size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # `nn.Sequential` calls its argument `input`.
        program = torch.export.export(nn.Sequential(graph), (example,))
        return program.run_decompositions(SIMPLER)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
    """Attention (..., N, D) without the case that PyTorch adds, of queries that see nothing: none of ours does."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ value


def _split(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [tensor.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _add_product(base: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return base + (a * b if value == 1 else a * b * value)


def _floor(a: Tensor, b: int, *, rounding_mode: str | None) -> Tensor:
    """Quotient of whole numbers, rounded down; Core ML's is a float unless it is asked for whole numbers."""
    if a.is_floating_point() or rounding_mode != "floor":
        return NotImplemented
    return aten._to_copy(aten.floor_divide(a, b), dtype=a.dtype)


def _clamp(tensor: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """The same for whole numbers, that stay whole."""
    if tensor.is_floating_point() or low is not None or high is None:
        return NotImplemented
    return torch.minimum(tensor, torch.full_like(tensor, high))


def _to_zero(tensor: Tensor, *instead: float | None) -> Tensor:
    """What is not finite becomes 0."""
    return torch.where(tensor.abs() < torch.inf, tensor, 0.0) if instead == (0, 0, 0) else NotImplemented


# Operators that some converter refuses, in those that all take.
SIMPLER = {
    aten.scaled_dot_product_attention.default: _attend,
    aten.addcmul.default: _add_product,
    aten.alias.default: lambda tensor: tensor.view(tensor.shape),
    aten.split_with_sizes.default: _split,
    aten.div.Tensor_mode: _floor,
    aten.clamp.default: _clamp,
    aten.nan_to_num.default: _to_zero,
    aten.__and__.Tensor: torch.logical_and,
    aten.where.ScalarSelf: lambda chosen, a, b: torch.where(chosen, torch.full_like(b, a), b),
    aten.where.ScalarOther: lambda chosen, a, b: torch.where(chosen, a, torch.full_like(a, b)),
}


class Named(nn.Module):
    """A module of one input, which is called `input`, whose outputs (a tuple) have names."""

    def __init__(self, inner: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.names = inner, names
        self.training = False

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.inner(input), strict=True))


@contextmanager
def converting(by: str) -> Iterator[None]:
    """Silence a converter, and give its error, of whatever kind, as a RuntimeError of one line."""
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise RuntimeError(f"{by} cannot write this network: {type(error).__name__}: {reason}") from error
