"""The encoder by its older path; `LWDETR.backbone[0].encoder.encoder` is one."""

from __future__ import annotations

from rfdetr.models.backbone import Encoder as WindowedDinov2WithRegistersBackbone

__all__ = ["WindowedDinov2WithRegistersBackbone"]
