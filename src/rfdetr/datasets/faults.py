"""What is wrong in an annotation file: an error, or where it is asked for, something that is left out and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rfdetr.datasets.annotations import Repair


@dataclass
class Faults:
    """Faults of one file.

    Args:
        lenient: leave out what is wrong instead of raising the first error.
    """

    source: Path
    lenient: bool = False
    repairs: list[Repair] = field(default_factory=list)

    def found(
        self,
        rows: np.ndarray,
        kind: str,
        message: Callable[[int], str],
        error: type[Exception] = ValueError,
    ) -> np.ndarray:
        """Note the rows that have a fault, which is described by the first of them; gives the rows back.

        Raises:
            error: there are such rows, and it was not asked to be lenient.
        """
        if len(rows):
            first = int(rows[0])
            if not self.lenient:
                raise error(f"{self.source}: {message(first)}")
            self.repairs.append(Repair(f"{kind}, left out", len(rows), message(first), fatal=True))
        return rows
