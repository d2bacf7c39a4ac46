"""Tensors in, tensors out: the network, its losses and its decoding. Knows nothing of files or devices."""

from __future__ import annotations

_OLDER = ("build_model", "build_criterion_and_postprocessors")


def __getattr__(name: str) -> object:
    if name not in _OLDER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rfdetr.models import lwdetr

    return getattr(lwdetr, name)
