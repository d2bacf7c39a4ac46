"""What a person sees while a run goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator


class Progress:
    """A live bar per pass (`kind="tqdm"`), or nothing."""

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind
        self._bar = None

    def over(self, batches: Iterable, title: str) -> Iterator:
        """Iterate over batches under a bar."""
        if self.kind is None:
            yield from batches
            return
        from tqdm import tqdm

        self._bar = tqdm(batches, desc=title, leave=False, dynamic_ncols=True, file=sys.stderr)
        try:
            yield from self._bar
        finally:
            self._bar.close()
            self._bar = None

    def show(self, **values: str) -> None:
        """Put values behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)

    @property
    def live(self) -> bool:
        """Whether a bar is shown, so that values for it are worth computing."""
        return self._bar is not None
