"""What a person sees while a run goes on, and how long a pass waited for its data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from operator import length_hint
from time import perf_counter

import torch

from rfdetr.extras import require

# After this many batches, a share of the time spent waiting for them that is worth a line.
PATIENCE, WAITED = 50, 0.2

# Moves a bar on by one batch and puts a text behind it.
Advance = Callable[[str], None]


class Progress:
    """A live bar per pass on stderr (`kind` "tqdm" or "rich"), or nothing; the clock runs in any case.

    Args:
        on_wait: called once, when the first 50 batches of a pass were waited for more than a fifth of the time.
    """

    def __init__(self, kind: str | None = None, on_wait: Callable[[float], None] | None = None) -> None:
        if kind == "rich":
            require("rich")
        self.kind, self._on_wait = kind, on_wait
        self._begin()

    def _begin(self) -> None:
        self._advance: Advance | None = None
        self._values: dict[str, str] = {}
        self._waited, self._elapsed = 0.0, 0.0

    def over(self, batches: Iterable, title: str, total: int | None = None, start: int = 0) -> Iterator:
        """Iterate over batches under a bar.

        Args:
            total: batches of the whole pass; None takes `start` and what `batches` has.
            start: batches that were done before, which `batches` does not have.
        """
        if total is None and (there := length_hint(batches, -1)) >= 0:
            total = start + there
        self._begin()
        try:
            with _BARS[self.kind](title, total, start) as self._advance:
                yield from self._timed(batches)
        finally:
            self._advance = None

    def _timed(self, batches: Iterable) -> Iterator:
        begun = asked = perf_counter()
        for count, batch in enumerate(batches, start=1):
            given = perf_counter()
            self._waited += given - asked
            self._elapsed = given - begun
            if count == PATIENCE and self._on_wait is not None and self.waited > WAITED:
                self._on_wait(self.waited)
                self._on_wait = None
            yield batch
            if self._advance is not None:
                self._advance(self._text())
            asked = perf_counter()
            self._elapsed = asked - begun

    def show(self, **values: str) -> None:
        """Put values behind the bar."""
        self._values = values

    @property
    def live(self) -> bool:
        """Whether a bar is shown, so that values for it are worth computing."""
        return self._advance is not None

    @property
    def waited(self) -> float:
        """Share (0..1) of the last pass's time that was spent waiting for data."""
        return self._waited / self._elapsed if self._elapsed else 0.0

    def _text(self) -> str:
        shown = {**self._values, "memory": _memory(), "data": f"{self.waited:.0%}"}
        return ", ".join(f"{name} {value}" for name, value in shown.items() if value)


def _memory() -> str:
    """GiB that PyTorch holds on the GPU, without one the most this process has had; "" where nobody tells."""
    if torch.cuda.is_initialized():
        return f"{torch.cuda.memory_reserved() / 2**30:.1f}G"
    if sys.platform == "win32":
        return ""
    import resource

    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f}G"


@contextmanager
def _tqdm_bar(title: str, total: int | None, start: int) -> Iterator[Advance]:
    from tqdm import tqdm

    with tqdm(desc=title, total=total, initial=start, leave=False, dynamic_ncols=True, file=sys.stderr) as bar:

        def advance(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield advance


@contextmanager
def _rich_bar(title: str, total: int | None, start: int) -> Iterator[Advance]:
    parts, console = require("rich.progress"), require("rich.console").Console(file=sys.stderr)
    column = require("rich.table").Column
    # On a narrow terminal the bar gives way.
    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(table_column=column(no_wrap=True)),
        parts.TimeRemainingColumn(table_column=column(no_wrap=True)),
        parts.TextColumn("{task.fields[text]}"),
    )
    # What a script prints into a file must not end up on the terminal with the bar.
    on_screen = sys.stdout.isatty()
    with parts.Progress(*columns, console=console, transient=True, redirect_stdout=on_screen) as bar:
        task = bar.add_task(title, total=total, completed=start, text="")

        def advance(text: str) -> None:
            speed = bar.tasks[task].speed
            bar.update(task, advance=1, text=f"{speed:.2f}it/s, {text}" if speed else text)

        yield advance


_BARS = {None: lambda *_: nullcontext(), "tqdm": _tqdm_bar, "rich": _rich_bar}
