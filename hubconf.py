"""PyTorch Hub: `torch.hub.load("owner/rf-detr", "nano")`, or with `source="local"` the path of a checkout."""

from __future__ import annotations

import sys as _sys
from collections.abc import Callable as _Callable
from pathlib import Path as _Path
from typing import Any as _Any

_sys.path.insert(0, str(_Path(__file__).parent / "src"))

from rfdetr.loading import size_class as _size_class
from rfdetr.variants import VARIANTS as _VARIANTS

dependencies = ["torch", "numpy", "PIL", "scipy", "pydantic", "tqdm"]


# Every name without an underscore is an entry that `torch.hub.list` shows.
def _entry(size: str) -> _Callable[..., _Any]:
    def build(pretrained: bool = True, **options: _Any) -> _Any:
        kind = _size_class(size)
        assert kind is not None
        return kind(**options) if pretrained else kind(pretrain_weights=None, **options)

    build.__doc__ = f"RF-DETR {size}; options are those of its class in Python. pretrained=False: random weights."
    return build


# Names of Python for "seg-nano", "2xlarge", ...
for _size in _VARIANTS:
    globals()[_size.replace("-", "_") if not _size[0].isdigit() else f"x{_size}"] = _entry(_size)
