"""A training run: devices, optimiser, averaging, state, logs."""

from __future__ import annotations
