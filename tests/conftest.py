"""Settings of every test."""

from __future__ import annotations

import os

# One thread per test process: parallel processes do not slow each other down. It must stand before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
