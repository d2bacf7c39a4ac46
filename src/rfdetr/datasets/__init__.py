"""Files to batches. Never imports `models`."""

from __future__ import annotations
