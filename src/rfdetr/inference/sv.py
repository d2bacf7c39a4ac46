"""The supervision package, which is slow to import."""

from __future__ import annotations

import functools
import threading
import warnings
from types import ModuleType

_preloading: threading.Thread | None = None


def preload() -> None:
    """Begin the import in a thread of its own, while something else is waited for."""
    global _preloading
    if _preloading is None:
        _preloading = threading.Thread(target=_import, daemon=True)
        _preloading.start()


@functools.cache
def supervision() -> ModuleType:
    """The supervision package, imported at the first result."""
    if _preloading is not None:
        _preloading.join()
    return _import()


def _import() -> ModuleType:
    """The package without its note about OpenCV, which is not needed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OpenCV.*")
        import supervision as sv
    return sv
