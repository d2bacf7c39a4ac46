"""The numbers of an epoch under the names that files, loggers and callbacks use."""

from __future__ import annotations

import datetime
import re
from typing import Any

import torch
from torch import nn

from rfdetr.config import TrainConfig
from rfdetr.training.state import RunState

# Prefix of the columns per kind of weights, and of the keys in log.txt.
_COLUMN = {"regular": "", "ema": "ema_"}
# Columns of the three evaluations and their places in the recorded numbers; the last one is the recall.
_PRECISION = {
    "coco_eval_bbox": {"mAP_50_95": 0, "mAP_50": 1, "mAP_75": 2, "mAR": 8},
    "coco_eval_masks": {"segm_mAP_50_95": 0, "segm_mAP_50": 1, "segm_mAP_75": 2, "segm_mAR": 8},
    "coco_eval_keypoints": {"keypoint_map_50_95": 0, "keypoint_map_50": 1, "keypoint_map_75": 2, "keypoint_mAR": 5},
}
_LAYER = re.compile(r"_(\d+|enc)$")


def epoch_stats(
    epoch: int,
    trained: dict[str, float],
    scores: dict[str, dict[str, Any]],
    state: RunState,
    model: nn.Module,
    seconds: tuple[float, float],
) -> dict[str, Any]:
    """The line of log.txt, which `on_fit_epoch_end` callbacks receive too."""
    stats: dict[str, Any] = {f"train_{name}": value for name, value in trained.items()}
    for kind, found in scores.items():
        stats.update({f"{_COLUMN[kind]}test_{name}": value for name, value in found.items()})
    stats["epoch"] = epoch
    stats["n_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    best = {kind: best for kind, best in state.best.items() if best.epoch >= 0}
    for kind, one in best.items():
        stats[f"{kind}_best_res"], stats[f"{kind}_best_ep"] = one.score, one.epoch
    if best:
        top = max(best.values(), key=lambda one: one.score)
        names = ("all_best_res", "all_best_ep") if "ema" in best else ("best_res", "best_ep")
        stats.update(zip(names, (top.score, top.epoch), strict=True))
    stats["now_time"] = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
    stats["train_epoch_time"], stats["epoch_time"] = (str(datetime.timedelta(seconds=int(s))) for s in seconds)
    return stats


def epoch_metrics(
    step: int,
    trained: dict[str, float],
    scores: dict[str, dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    split: str = "val",
) -> dict[str, float]:
    """The row of metrics.csv, whose names the loggers use too."""
    metrics: dict[str, float] = {"step": step}
    if trained:
        metrics.update(_losses("train", trained, config.compact_train_metrics))
        rates = [group["lr"] for group in optimizer.param_groups]
        metrics.update({"train/lr": trained["lr"], "train/lr_min": min(rates), "train/lr_max": max(rates)})
    for kind, found in scores.items():
        if kind == "regular" or "regular" not in scores:
            metrics.update(_losses(split, found))
            metrics.update(_table(split, found, config.log_per_class_metrics))
        metrics.update({f"{split}/{_COLUMN[kind]}{name}": value for name, value in precision_columns(found).items()})
    return metrics


def precision_columns(found: dict[str, Any]) -> dict[str, float]:
    """Average precision and recall of boxes, and of masks and keypoints where they were evaluated, by column."""
    columns = {}
    for entry, names in _PRECISION.items():
        columns.update({name: found[entry][index] for name, index in names.items() if entry in found})
    return columns


def score_of(stats: dict[str, Any] | None, metric: str) -> float | None:
    """The number that decides: AP of masks, keypoints or else boxes, or their AR for "mar"; None where undefined."""
    if stats is None:
        return None
    entry = next(name for name in ("coco_eval_masks", "coco_eval_keypoints", "coco_eval_bbox") if name in stats)
    score = stats[entry][list(_PRECISION[entry].values())[-1] if metric == "mar" else 0]
    return None if score == -1 else score


def _losses(split: str, values: dict[str, Any], compact: bool = True) -> dict[str, float]:
    """Final losses under their names, those of the other layers summed as `<name>_aux`, or each on its own."""
    losses: dict[str, float] = {}
    for name, value in values.items():
        if name in ("loss", "class_error"):
            losses[f"{split}/{name}"] = value
        elif name == "cardinality_error_unscaled":
            losses[f"{split}/cardinality_error"] = value
        elif name.startswith("loss_") and not name.endswith("_unscaled"):
            layer = compact and _LAYER.search(name)
            column = f"{split}/{_LAYER.sub('', name)}_aux" if layer else f"{split}/{name}"
            losses[column] = losses.get(column, 0.0) + value
    return losses


def _table(split: str, found: dict[str, Any], per_class: bool) -> dict[str, float]:
    results = found["results_json"]
    table = {
        f"{split}/F1": results["f1_score"],
        f"{split}/precision": results["precision"],
        f"{split}/recall": results["recall"],
    }
    if per_class:
        rows = results["class_map"]
        table.update({f"{split}/AP/{row['class']}": row["map@50:95"] for row in rows if row["class"] != "all"})
    return table


def one_line(
    epoch: int,
    epochs: int,
    trained: dict[str, float],
    scores: dict[str, dict[str, Any]],
    seconds: tuple[float, float],
    waited: float,
) -> str:
    """What is printed of an epoch; `waited` is the share of the training time spent waiting for pictures."""
    parts = [f"epoch {epoch + 1}/{epochs}", f"loss {trained['loss']:.3f}", f"lr {trained['lr']:.2e}"]
    for kind, found in scores.items():
        for entry, what in (("bbox", ""), ("masks", "mask "), ("keypoints", "keypoint ")):
            if numbers := found.get(f"coco_eval_{entry}"):
                parts.append(f"{'EMA ' if kind == 'ema' else ''}{what}AP {numbers[0]:.3f} AP50 {numbers[1]:.3f}")
    data = f" ({waited:.0%} waiting for data; more num_workers may help)" if waited > 0.2 else ""
    return "  ".join([*parts, f"{seconds[1]:.0f} s{data}"])
