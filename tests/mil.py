"""Core ML's programs, computed by PyTorch as the reference of MIL describes the operators, where no Mac is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "int": torch.int32, "bool": torch.bool}

FILLED = {float: torch.float32, int: torch.int32, bool: torch.bool}


class Computed:
    """A written package (`rfdetr.export.files.Runtime`)."""

    about = "PyTorch"

    def __init__(self, path: Path) -> None:
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.models.utils import load_spec

        spec = load_spec(str(path))
        self._main = load(spec, spec.specificationVersion, str(next(path.rglob("weights")))).functions["main"]
        ports = {port.name: port.type.multiArrayType for port in (*spec.description.input, *spec.description.output)}
        shapes = {name: tuple(port.shape) for name, port in ports.items()}
        self.texts, self.shape, self.outputs = dict(spec.description.metadata.userDefined), shapes.pop("input"), shapes

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every output by name; each operator must give the type and shape that the program says."""
        values: dict[str, Any] = {"input": torch.from_numpy(images)}
        for op in self._main.operations:
            if op.op_type == "const":
                values[op.outputs[0].name] = op.outputs[0].val
                continue
            given = {name: _value(var, values) for name, var in op.inputs.items() if var is not None}
            found = OPERATORS[op.op_type](**given)
            for var, value in zip(op.outputs, found if isinstance(found, tuple) else (found,), strict=True):
                kind = KINDS[var.dtype.__name__]
                assert kind in (value.dtype, torch.float16), (op, value.dtype)
                assert tuple(var.shape) == tuple(value.shape), (op, value.shape)
                values[var.name] = value.to(kind)
        return {name: values[name].numpy() for name in self.outputs}


def _value(var: Any, values: dict[str, Any]) -> Any:
    """What an operator reads: tensors, and shapes, axes and modes as Python has them."""
    if isinstance(var, (list, tuple)):
        return [_value(one, values) for one in var]
    value = values.get(var.name, var.val)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "ib":
        return value.tolist()
    if isinstance(value, np.ndarray):
        # PyTorch computes little in half precision on a CPU; results are rounded instead.
        return torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else value)
    if isinstance(value, np.generic):
        return value.item()
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _convolve(x, weight, bias=None, strides=None, pad_type="valid", pad=None, dilations=None, groups=1):
    top, bottom, left, right = pad if pad_type == "custom" else (0, 0, 0, 0)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, strides, 0, dilations, groups)


def _slice(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    no = [False] * x.dim()
    parts = zip(begin, end, stride or [1] * x.dim(), begin_mask or no, end_mask or no, squeeze_mask or no, strict=True)
    return x[tuple(a if one else slice(None if c else a, None if d else b, s) for a, b, s, c, d, one in parts)]


def _gather(x, indices, axis=0, batch_dims=0, validate_indices=False):
    assert batch_dims == 0
    x, indices = _tensor(x), _tensor(indices)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis:][1:])
    return x.index_select(axis, indices.flatten().long()).reshape(shape)


def _upsample(x, scale_factor_height, scale_factor_width, align_corners=True, half_pixel_centers=None):
    assert not align_corners and half_pixel_centers in (None, True)
    scale = (float(scale_factor_height), float(scale_factor_width))
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=True)


def _resample(x, coordinates, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners):
    modes = (sampling_mode, padding_mode, padding_value, coordinates_mode)
    assert modes == ("bilinear", "constant", 0, "normalized_minus_one_to_one")
    return F.grid_sample(x, coordinates, align_corners=align_corners)


def _topk(x, k, axis=-1, ascending=False, sort=True, return_indices=True):
    values, indices = x.topk(k, axis, largest=not ascending)
    return values, indices.int()


def _reduce(function: Callable) -> Callable:
    return lambda x, axes, keep_dims=False: function(x, tuple(axes), keepdim=keep_dims)


def _pad(x, pad, mode="constant", constant_val=0.0):
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return F.pad(x, [size for pair in reversed(pairs) for size in pair], mode, constant_val)


def _one(function: Callable) -> Callable:
    return lambda x: function(x)


def _two(function: Callable) -> Callable:
    return lambda x, y: function(_tensor(x), _tensor(y))


def _tensor(value: Any) -> Tensor:
    """A tensor; whole numbers are of 32 bits."""
    tensor = torch.as_tensor(value)
    return tensor.int() if tensor.dtype == torch.int64 else tensor


OPERATORS: dict[str, Callable] = {
    "abs": _one(torch.abs),
    "add": _two(torch.add),
    "cast": lambda x, dtype: x.to(KINDS[dtype]),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "concat": lambda values, axis, interleave=False: torch.cat(values, axis),
    "conv": _convolve,
    "cos": _one(torch.cos),
    "equal": _two(torch.eq),
    "exp": _one(torch.exp),
    "expand_dims": lambda x, axes: x.reshape(np.expand_dims(np.empty(x.shape), tuple(axes)).shape),
    "fill_like": lambda ref_tensor, value: torch.full_like(ref_tensor, value, dtype=FILLED[type(value)]),
    "floor_div": _two(torch.floor_divide),
    "gather": _gather,
    "gather_along_axis": lambda x, indices, axis, validate_indices=False: x.gather(axis, indices.long()),
    "gelu": lambda x, mode: F.gelu(x, approximate={"EXACT": "none"}[mode]),
    "greater": _two(torch.gt),
    "greater_equal": _two(torch.ge),
    "layer_norm": lambda x, axes, gamma, beta, epsilon: F.layer_norm(x, x.shape[-len(axes) :], gamma, beta, epsilon),
    "less": _two(torch.lt),
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "log": lambda x, epsilon=1e-45: torch.log(x + epsilon),
    "logical_and": _two(torch.logical_and),
    "logical_not": _one(torch.logical_not),
    "logical_or": _two(torch.logical_or),
    "matmul": lambda x, y, transpose_x=False, transpose_y=False: (
        (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)
    ),
    "minimum": _two(torch.minimum),
    "mul": _two(torch.mul),
    "not_equal": _two(torch.ne),
    "pad": _pad,
    "real_div": _two(torch.true_divide),
    "reduce_log_sum_exp": _reduce(torch.logsumexp),
    "reduce_max": _reduce(torch.amax),
    "reduce_sum": _reduce(torch.sum),
    "relu": _one(F.relu),
    "resample": _resample,
    "reshape": lambda x, shape: x.reshape(tuple(shape)),
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "sigmoid": _one(torch.sigmoid),
    "silu": _one(F.silu),
    "sin": _one(torch.sin),
    "slice_by_index": _slice,
    "softmax": lambda x, axis: x.softmax(axis),
    "split": lambda x, axis, split_sizes: x.split(list(split_sizes), axis),
    "squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "stack": lambda values, axis: torch.stack(values, axis),
    "sub": _two(torch.sub),
    "tile": lambda x, reps: x.repeat(tuple(reps)),
    "topk": _topk,
    "transpose": lambda x, perm: x.permute(tuple(perm)),
    "upsample_bilinear": _upsample,
}
