"""What releases 1.6 to 1.11 call `rfdetr.util`."""

from __future__ import annotations

import sys

from rfdetr.util import box_ops, logger, misc

sys.modules |= {f"{__name__}.box_ops": box_ops, f"{__name__}.logger": logger, f"{__name__}.tensors": misc}
tensors = misc

__all__ = ["box_ops", "logger", "tensors"]
