"""The encoder by its older path; `LWDETR.backbone[0].encoder` is one."""

from __future__ import annotations

from rfdetr.models.backbone import Encoder as DinoV2
from rfdetr.models.backbone.dinov2_with_windowed_attn import WindowedDinov2WithRegistersBackbone

__all__ = ["DinoV2", "WindowedDinov2WithRegistersBackbone"]
