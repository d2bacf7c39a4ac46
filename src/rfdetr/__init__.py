"""RF-DETR: real-time detection transformers to fine-tune on your own data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rfdetr.detr import (
        RFDETR,
        RFDETR2XLarge,
        RFDETRBase,
        RFDETRKeypointPreview,
        RFDETRLarge,
        RFDETRLargeDeprecated,
        RFDETRMedium,
        RFDETRNano,
        RFDETRSeg2XLarge,
        RFDETRSegLarge,
        RFDETRSegMedium,
        RFDETRSegNano,
        RFDETRSegPreview,
        RFDETRSegSmall,
        RFDETRSegXLarge,
        RFDETRSmall,
        RFDETRXLarge,
        from_checkpoint,
    )
    from rfdetr.loading import load

# Public names and where they are defined; they are imported at first use, so that `import rfdetr` costs nothing.
_PUBLIC = {
    "RFDETR": "detr",
    "RFDETR2XLarge": "detr",
    "RFDETRBase": "detr",
    "RFDETRKeypointPreview": "detr",
    "RFDETRLarge": "detr",
    "RFDETRLargeDeprecated": "detr",
    "RFDETRMedium": "detr",
    "RFDETRNano": "detr",
    "RFDETRSeg2XLarge": "detr",
    "RFDETRSegLarge": "detr",
    "RFDETRSegMedium": "detr",
    "RFDETRSegNano": "detr",
    "RFDETRSegPreview": "detr",
    "RFDETRSegSmall": "detr",
    "RFDETRSegXLarge": "detr",
    "RFDETRSmall": "detr",
    "RFDETRXLarge": "detr",
    "from_checkpoint": "detr",
    "load": "loading",
}

__all__ = [
    "RFDETR",
    "RFDETR2XLarge",
    "RFDETRBase",
    "RFDETRKeypointPreview",
    "RFDETRLarge",
    "RFDETRLargeDeprecated",
    "RFDETRMedium",
    "RFDETRNano",
    "RFDETRSeg2XLarge",
    "RFDETRSegLarge",
    "RFDETRSegMedium",
    "RFDETRSegNano",
    "RFDETRSegPreview",
    "RFDETRSegSmall",
    "RFDETRSegXLarge",
    "RFDETRSmall",
    "RFDETRXLarge",
    "__version__",
    "from_checkpoint",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rfdetr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rfdetr.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
