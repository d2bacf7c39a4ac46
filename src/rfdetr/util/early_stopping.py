"""The callback with which older scripts end a run; `train(early_stopping=True)` needs none."""

from __future__ import annotations

from typing import Any

from rfdetr.log import logger
from rfdetr.training.state import EarlyStopping


class EarlyStoppingCallback:
    """Ends a run when its score stops rising: `model.callbacks["on_fit_epoch_end"].append(callback.update)`.

    Args:
        model: has `request_early_stop()`, as `RFDETR.model` does.
        segmentation_head: watch the AP of masks instead of that of boxes.
    """

    def __init__(
        self,
        model: Any,
        patience: int = 5,
        min_delta: float = 0.001,
        use_ema: bool = False,
        verbose: bool = True,
        segmentation_head: bool = False,
    ) -> None:
        self.model, self.verbose = model, verbose
        self.column = "coco_eval_masks" if segmentation_head else "coco_eval_bbox"
        self.state = EarlyStopping(patience, min_delta, use_ema)

    def update(self, log_stats: dict[str, Any]) -> None:
        """Take the numbers of an epoch."""
        scores = [log_stats.get(f"{kind}_{self.column}") for kind in ("test", "ema_test")]
        regular, ema = (None if score is None else float(score[0]) for score in scores)
        if self.state.should_stop(regular, ema):
            if self.verbose:
                logger.info("the score has not risen for %d evaluations: the run ends", self.state.counter)
            self.model.request_early_stop()
