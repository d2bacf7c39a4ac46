"""The health of a run, and the wish to end it: batches whose loss is not finite, Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.engine import Watch
from rfdetr.log import logger
from rfdetr.training.state import write_json


class Interrupted(BaseException):
    """A signal came while no step was running; the last checkpoint is where the run stands.

    No `Exception`, like KeyboardInterrupt, so that nothing takes it for a failure of its own.
    """


class RunWatch(Watch):
    """Takes note of broken batches, and of signals that ask the run to end.

    Args:
        folder: broken batches are described in its `broken_batches/`.
        annotations: the training split, to name the pictures of a batch.
        rank: of this process, part of the file names.
        alone: whether there is no other process; alone, a run can be left where nothing would be lost.
        on_step: called with step, loss and learning rate of every sound step.
    """

    limit = 5

    def __init__(
        self,
        folder: Path,
        annotations: AnnotationSet,
        rank: int = 0,
        alone: bool = True,
        on_step: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self.folder, self.annotations, self.rank, self.alone = folder / "broken_batches", annotations, rank, alone
        self.on_step = on_step
        self.signal: int | None = None
        self.in_a_row = 0
        self._saved = False

    @property
    def wants_stop(self) -> bool:  # pyrefly: ignore[bad-override]
        """Whether the run should end after this step."""
        return self.signal is not None

    def sound(self, step: int, loss: float, lr: float) -> None:
        """Forget the broken batches before this step."""
        self.in_a_row = 0
        if self.on_step is not None:
            self.on_step(step, loss, lr)

    def broken(self, step: int, batch: Any, losses: list[str]) -> None:
        """Describe a batch in a file; its step is left out.

        Raises:
            RuntimeError: it is the fifth in a row.
        """
        self.in_a_row += 1
        if losses:
            path = self._describe(step, batch, losses)
            logger.warning("step %d is left out: %s not finite; its batch is in %s", step, ", ".join(losses), path)
        if self.in_a_row >= self.limit:
            raise RuntimeError(
                f"the loss was not finite in {self.limit} steps in a row, so the run ends; the batches are described "
                f"in {self.folder}. Look at their pictures and boxes, or try a lower lr, or amp_dtype=None"
            )

    def _describe(self, step: int, batch: Any, losses: list[str]) -> Path:
        places = {int(image_id): index for index, image_id in enumerate(self.annotations.image_ids)}
        entries = []
        for target in batch[1]:
            path = self.annotations.path(places[int(target["image_id"][0])])
            boxes = [[float(value) for value in box] for box in target["boxes"]]
            labels = [int(label) for label in target["labels"]]
            entries.append({"picture": str(path), "labels": labels, "boxes_cxcywh": boxes})
        suffix = f"_process_{self.rank}" if self.rank else ""
        path = self.folder / f"step_{step}{suffix}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"step": step, "not_finite": losses, "batch": entries})
        return path

    @contextmanager
    def all_saved(self) -> Iterator[None]:
        """While nothing would be lost, such as in an evaluation, a signal ends the run at once."""
        if self.alone and self.wants_stop:
            raise Interrupted
        self._saved = True
        try:
            yield
        finally:
            self._saved = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as a wish to end; a second signal has its usual effect at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in usual.items():
                signal.signal(number, handler)

        def note(number: int, frame: Any) -> None:
            self.signal = number
            restore()
            if self.alone and self._saved:
                raise Interrupted
            logger.warning("the run ends after this step and can be resumed; the same signal again ends it at once")

        for number in usual:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()
