"""What `export` was asked for, as one request that a format can follow, or as an error before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rfdetr.export.files import FORMATS, SUFFIXES, Request, module_of

# Formats that are made of an ONNX file and take any number of pictures, and the precisions that files can have.
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
        precisions: what each format that has a choice was asked for; of TensorRT, half precision or not.

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
    if isinstance(opset, bool) or not isinstance(opset, int) or not 17 <= opset <= 23:
        raise ValueError(
            f"opset_version={opset!r} must be 17 to 23: older ones lack layer norms, newer ones PyTorch does not write"
        )
    if dynamic_batch and kind not in _DYNAMIC:
        raise NotImplementedError(f"dynamic_batch=True: {format} files take one number of pictures; give batch_size")
    if dynamic_batch is None:
        dynamic_batch = kind in _DYNAMIC and batch_size is None
    for names, value, kinds in (
        ("backend and soc", backend or soc, ("executorch",)),
        ("max_batch_size", max_batch_size, ("tensorrt",)),
        ("simplify", simplify, _DYNAMIC),
    ):
        if value and kind not in kinds:
            raise ValueError(f"{names}: {value!r} is of no effect with format={format!r}; leave it out")
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
    name = PurePath(output_name) if isinstance(output_name, str) else PurePath()
    if str(name) != output_name or name.name != output_name or output_name.startswith("."):
        raise ValueError(f"output_name={output_name!r} must be the name of a file, without folders")
    # What follows a dot is a suffix only if it is one: models have names such as "nano-1.5".
    return name.stem if name.suffix in SUFFIXES else name.name


def _precision(kind: str, precisions: Mapping[str, Any]) -> str:
    for name, wanted in precisions.items():
        if wanted is None or name == "tensorrt":
            continue
        if wanted not in _PRECISIONS:
            raise ValueError(f"{name}_precision={wanted!r} must be one of {', '.join(_PRECISIONS)}")
        if name != kind:
            raise ValueError(f"{name}_precision={wanted!r} is of no effect with format={kind!r}; leave it out")
    if kind == "tensorrt":
        return "float16" if precisions[kind] else "float32"
    return precisions.get(kind) or "float32"
