"""Import paths of older releases."""

from __future__ import annotations
