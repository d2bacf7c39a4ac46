"""The supervision package, which is slow to import."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType


@functools.cache
def supervision() -> ModuleType:
    """The supervision package, imported at the first result, without its note about OpenCV, which is not needed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OpenCV.*")
        import supervision as sv
    return sv
