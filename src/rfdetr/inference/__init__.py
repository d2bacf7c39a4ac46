"""Pictures in, supervision objects out."""

from __future__ import annotations
