"""What a run must remember: best scores, the stopping counter, its checkpoints, and how it goes on after a break."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rfdetr.checkpoints.load import Checkpoint, fit, read_checkpoint
from rfdetr.checkpoints.names import to_internal
from rfdetr.checkpoints.save import published_weights, replacing, save_checkpoint
from rfdetr.config import ModelConfig
from rfdetr.training.ema import ModelEma
from rfdetr.training.runtime import Runtime, random_state, restore_random_state

BEST_FILES = {"regular": "checkpoint_best_regular.pth", "ema": "checkpoint_best_ema.pth"}
BEST_TOTAL = "checkpoint_best_total.pth"
LAST = "checkpoint.pth"
LOGS = ("log.txt", "metrics.csv")


@dataclass
class Best:
    """Best score of one kind of weights, and the epoch that had it; -1 before the first evaluation."""

    score: float = -math.inf
    epoch: int = -1

    def is_beaten_by(self, score: float, epoch: int) -> bool:
        """Whether `score` is a new best; if so it is kept. A score that is no number never is."""
        if not score > self.score:
            return False
        self.score, self.epoch = score, epoch
        return True


@dataclass
class EarlyStopping:
    """Counts evaluations without a rise of the score.

    Args:
        patience: evaluations without a rise after which the run ends.
        min_delta: smallest change that counts as a rise.
        use_ema: watch the averaged weights alone, where they are evaluated.
    """

    patience: int = 10
    min_delta: float = 0.001
    use_ema: bool = False
    best: float = -math.inf
    counter: int = 0

    def should_stop(self, regular: float | None, ema: float | None) -> bool:
        """Take the scores of one evaluation; None where a kind of weights was not evaluated."""
        scores = [score for score in (regular, ema) if score is not None]
        if not scores:
            return False
        current = ema if self.use_ema and ema is not None else max(scores)
        if not math.isfinite(current):
            return True
        if current > self.best + self.min_delta:
            self.best, self.counter = current, 0
        else:
            self.counter += 1
        return self.counter >= self.patience


@dataclass
class RunState:
    """Position of a run, and what decides its files."""

    epoch: int = 0
    global_step: int = 0
    seed: int = 0
    best: dict[str, Best] = field(default_factory=lambda: {kind: Best() for kind in BEST_FILES})
    stopping: EarlyStopping = field(default_factory=EarlyStopping)

    @property
    def winner(self) -> str | None:
        """The better kind of weights, "regular" when both are equal; None before the first evaluation."""
        seen = [kind for kind in BEST_FILES if self.best[kind].epoch >= 0]
        return max(seen, key=lambda kind: self.best[kind].score) if seen else None


@dataclass
class Parts:
    """The live objects of a run whose state goes into a checkpoint."""

    model: nn.Module
    config: ModelConfig
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: ModelEma | None
    runtime: Runtime


def save_last(path: Path, parts: Parts, state: RunState, description: dict[str, Any]) -> None:
    """Write everything a run needs to go on."""
    content = {
        "model": published_weights(parts.model.state_dict()),
        "optimizer": parts.optimizer.state_dict(),
        "lr_scheduler": {k: v for k, v in parts.scheduler.state_dict().items() if k in ("last_epoch", "base_lrs")},
        "epoch": state.epoch,
        **description,
        "global_step": state.global_step,
        "seed": state.seed,
        "best": {kind: asdict(best) for kind, best in state.best.items()},
        "early_stopping": {"best": state.stopping.best, "counter": state.stopping.counter},
        "rng": random_state(),
        "scaler": parts.runtime.scaler.state_dict(),
        "param_names": [name for group in parts.optimizer.param_groups for name in group["names"]],
    }
    if parts.ema is not None:
        content["ema_model"] = published_weights(parts.ema.module.state_dict())
        content["ema_updates"] = parts.ema.updates
    save_checkpoint(path, content)


def save_best(path: Path, model: nn.Module, epoch: int, score: float, description: dict[str, Any]) -> None:
    """Write the weights of a new best, without anything a run would need to go on."""
    content = {"model": published_weights(model.state_dict()), "epoch": epoch, "metric": score, **description}
    save_checkpoint(path, content)


def save_total(folder: Path, source: str, description: dict[str, Any], fallback: nn.Module) -> Path:
    """Make `checkpoint_best_total.pth` of the better best file; of `fallback` when nothing was evaluated."""
    best = folder / BEST_FILES.get(source, "")
    if source in BEST_FILES and best.is_file():
        weights = read_checkpoint(best).weights
    else:
        weights = published_weights(fallback.state_dict())
    save_checkpoint(folder / BEST_TOTAL, {"model": weights, **description, "best_total_source": source})
    return folder / BEST_TOTAL


def resume(path: Path, parts: Parts, state: RunState) -> list[str]:
    """Put a run back to where its checkpoint was written; returns what the file lacked and had to start fresh.

    Raises:
        ValueError: the weights do not fit the model.
    """
    checkpoint = read_checkpoint(path)
    content = checkpoint.content
    parts.model.load_state_dict(fit(checkpoint, parts.config))
    state.epoch = int(content.get("epoch", -1)) + 1
    state.global_step = int(content.get("global_step", 0))
    state.seed = content.get("seed", state.seed)
    for kind, values in content.get("best", {}).items():
        state.best[kind] = Best(**values)
    for name, value in content.get("early_stopping", {}).items():
        setattr(state.stopping, name, value)
    fresh = _resume_optimizer(content, parts)
    if parts.ema is not None:
        fresh += _resume_ema(checkpoint, parts.ema, parts.model)
    if "scaler" in content and parts.runtime.scaler.is_enabled():
        parts.runtime.scaler.load_state_dict(content["scaler"])
    if "rng" in content:
        restore_random_state(content["rng"])
    return fresh


def set_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run to a folder of their own, so that none is lost or taken for the new run's."""
    names = (*BEST_FILES.values(), BEST_TOTAL, LAST, *LOGS, "results.json", "metrics_plot.png", "training_config.json")
    left = [folder / name for name in names if (folder / name).is_file()]
    left += [path for path in folder.glob("checkpoint_*.pth") if path.stem.removeprefix("checkpoint_").isdigit()]
    if not left:
        return None
    number = 1
    while (folder / f"earlier_{number}").exists():
        number += 1
    aside = folder / f"earlier_{number}"
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    return aside


def bring_along(old: Path, folder: Path, state: RunState) -> None:
    """Let a run go on in another folder: its best files and logs come along; a best without its file is forgotten."""
    if old.resolve() != folder.resolve():
        for name in (*BEST_FILES.values(), *LOGS):
            if (old / name).is_file() and not (folder / name).exists():
                with replacing(folder / name) as handle:
                    handle.write((old / name).read_bytes())
    for kind, name in BEST_FILES.items():
        if not (folder / name).is_file():
            state.best[kind] = Best()


def _resume_optimizer(content: dict[str, Any], parts: Parts) -> list[str]:
    saved, names = content.get("optimizer"), content.get("param_names")
    if not saved or not names:
        return ["optimiser and schedule"]
    if names != [name for group in parts.optimizer.param_groups for name in group["names"]]:
        return ["optimiser and schedule (other parameters are trained now)"]
    parts.optimizer.load_state_dict(saved)
    parts.scheduler.load_state_dict({**parts.scheduler.state_dict(), **content["lr_scheduler"]})
    return []


def _resume_ema(checkpoint: Checkpoint, ema: ModelEma, live: nn.Module) -> list[str]:
    averaged = checkpoint.content.get("ema_model")
    if averaged is None:
        ema.module.load_state_dict(live.state_dict())
        return ["weight average"]
    ema.module.load_state_dict(to_internal(averaged)[0])
    ema.updates = int(checkpoint.content.get("ema_updates", 0))
    ema.steps = ema.updates * ema.interval
    return []


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once."""
    with replacing(path, "w") as handle:
        json.dump(content, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
