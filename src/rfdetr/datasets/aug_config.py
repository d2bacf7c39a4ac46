"""The older name of `aug_configs`."""

from __future__ import annotations

from rfdetr.datasets.aug_configs import (
    AUG_AERIAL,
    AUG_AGGRESSIVE,
    AUG_CONFIG,
    AUG_CONSERVATIVE,
    AUG_INDUSTRIAL,
    PRESETS,
)

__all__ = ["AUG_AERIAL", "AUG_AGGRESSIVE", "AUG_CONFIG", "AUG_CONSERVATIVE", "AUG_INDUSTRIAL", "PRESETS"]
