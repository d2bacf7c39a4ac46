"""`python -m rfdetr`."""

from __future__ import annotations

import sys

from rfdetr.cli import main

sys.exit(main())
