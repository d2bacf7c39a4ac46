"""Files to batches. Never imports `models`."""

from __future__ import annotations

_OLDER = ("build_dataset", "get_coco_api_from_dataset", "detect_roboflow_format")


def __getattr__(name: str) -> object:
    if name not in _OLDER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rfdetr.datasets import older

    return getattr(older, name)
