"""Files in and out: published tensor names, loading, saving, downloads."""

from __future__ import annotations
