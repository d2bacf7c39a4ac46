"""A training run: devices, optimiser, averaging, state, logs."""

from __future__ import annotations

_LIGHTNING = ("RFDETRModelModule", "RFDETRDataModule", "build_trainer", "convert_legacy_checkpoint")


def __getattr__(name: str) -> object:
    if name in _LIGHTNING:
        raise ImportError(f"rfdetr.training.{name} belongs to Lightning, which is not used here: call model.train(...)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
