"""What `export` was asked for, as one request that a format can follow, or as an error before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rfdetr.export.files import FORMATS, Request, module_of

# Formats that take any number of pictures, and those that can be written in half precision.
_DYNAMIC = ("onnx", "openvino", "tensorrt")
_PRECISIONS = ("float32", "float16")


def read_options(
    format: str,
    *,
    batch_size: int | None,
    dynamic_batch: bool | None,
    max_batch_size: int | None,
    quantization: str | None,
    opset: int,
    output_name: str | None,
    precisions: Mapping[str, Any],
    simplify: bool,
    backend: str | None,
    soc: str | None,
) -> Request:
    """The request of a call of `export`; see there for the options.

    Args:
        precisions: what each format that has a choice was asked for; bool means half precision or not.

    Raises:
        ValueError, TypeError, NotImplementedError: options that are not allowed, or that this format does not have.
    """
    module_of(format)
    kind = FORMATS[format]
    if quantization is not None:
        raise ValueError(
            f"quantization={quantization!r}: 8 bits are not offered, since detections do not survive them unharmed; "
            "half precision is: openvino_precision='float16', fp16=True of TensorRT, coreml_precision='float16'"
        )
    for name, value in (("batch_size", batch_size), ("max_batch_size", max_batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r} must be a positive whole number")
    if isinstance(opset, bool) or not isinstance(opset, int) or opset < 17:
        raise ValueError(f"opset_version={opset!r} must be 17 or more, which has layer norms and grid samples")
    if dynamic_batch and kind not in _DYNAMIC:
        raise NotImplementedError(f"dynamic_batch=True: {format} files take one number of pictures; give batch_size")
    if dynamic_batch is None:
        dynamic_batch = kind in _DYNAMIC and batch_size is None
    if max_batch_size is not None and batch_size is not None and max_batch_size < batch_size:
        raise ValueError(f"max_batch_size={max_batch_size} is less than batch_size={batch_size}")
    return Request(
        stem=_stem(output_name),
        batch_size=None if dynamic_batch else batch_size or 1,
        max_batch_size=max_batch_size,
        precision=_precision(kind, precisions),
        opset=opset,
        simplify=simplify,
        backend=backend or "xnnpack",
        soc=soc,
    )


def _stem(output_name: str | None) -> str:
    if output_name is None:
        return "inference_model"
    stem = PurePath(output_name).stem if isinstance(output_name, str) else ""
    if not stem or PurePath(output_name).name != output_name:
        raise ValueError(f"output_name={output_name!r} must be the name of a file, without folders")
    return stem


def _precision(kind: str, precisions: Mapping[str, Any]) -> str:
    for name, wanted in precisions.items():
        if name != kind and wanted is not None and not isinstance(wanted, bool):
            raise ValueError(f"{name}_precision={wanted!r} is of no effect with format={kind!r}; leave it out")
    wanted = precisions.get(kind)
    if isinstance(wanted, bool):
        return "float16" if wanted else "float32"
    if wanted is not None and wanted not in _PRECISIONS:
        raise ValueError(f"{kind}_precision={wanted!r} must be one of {', '.join(_PRECISIONS)}")
    return wanted or "float32"
