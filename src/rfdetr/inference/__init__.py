"""Pictures in, supervision objects out."""

from __future__ import annotations


def __getattr__(name: str) -> object:
    if name != "ModelContext":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What `RFDETR.model` is.
    from rfdetr.main import Model

    return Model
