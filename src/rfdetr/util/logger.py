"""The package's logger, by its older path."""

from __future__ import annotations

import logging

from rfdetr.log import logger


def get_logger(name: str = "rf-detr", level: int | None = None) -> logging.Logger:
    """The logger of this package, or one below it."""
    found = logger if name == logger.name else logger.getChild(name)
    if level is not None:
        found.setLevel(level)
    return found


__all__ = ["get_logger"]
