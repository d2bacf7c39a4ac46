"""The package's logger: plain lines on standard error, unless the program has set up logging of its own."""

from __future__ import annotations

import logging
import os


class _Console(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


logger = logging.getLogger("rf-detr")
if not logger.handlers:
    logger.addHandler(_Console())
    logger.setLevel(os.environ.get("LOG_LEVEL", "INFO").upper())
