"""What a run must remember: best scores, the stopping counter, its checkpoints, and how it goes on after a break."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rfdetr.checkpoints.load import Checkpoint, read_checkpoint
from rfdetr.checkpoints.names import to_internal
from rfdetr.checkpoints.replacing import replacing
from rfdetr.checkpoints.save import published_weights, save_checkpoint
from rfdetr.config import ModelConfig
from rfdetr.models.lora import adapter_state, merged_state
from rfdetr.training.ema import ModelEma
from rfdetr.training.runtime import Processes, Runtime, split_like, whole
from rfdetr.training.seeds import random_state, restore_random_state

BEST_FILES = {"regular": "checkpoint_best_regular.pth", "ema": "checkpoint_best_ema.pth"}
BEST_TOTAL = "checkpoint_best_total.pth"
LAST = "checkpoint.pth"
LOGS = ("log.txt", "metrics.csv")
OF_A_RUN = (*BEST_FILES.values(), BEST_TOTAL, LAST, *LOGS, "results.json", "metrics_plot.png", "training_config.json")
OF_A_RUN += ("dataset_grids", "broken_batches", "dataset_check.json", "bad_pictures.txt")


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
    """Position of a run, and what decides its files.

    `step` optimiser steps of epoch `epoch` are made. `judged` says that the epoch was evaluated too, if it had to be.
    """

    epoch: int = 0
    step: int = 0
    judged: bool = False
    global_step: int = 0
    seed: int = 0
    ended: bool = False
    smoothed: float | None = None
    best: dict[str, Best] = field(default_factory=lambda: {kind: Best() for kind in BEST_FILES})
    stopping: EarlyStopping = field(default_factory=EarlyStopping)

    def begin(self, epoch: int) -> None:
        """Stand at the start of an epoch, unless a resumed run stands inside it."""
        if self.epoch != epoch or self.judged:
            self.epoch, self.step, self.judged = epoch, 0, False

    def smooth(self, score: float, alpha: float) -> float:
        """The exponentially smoothed score of the regular weights; the score itself for `alpha` 0."""
        if self.smoothed is not None and math.isfinite(self.smoothed):
            score = alpha * self.smoothed + (1 - alpha) * score
        self.smoothed = score
        return score

    @property
    def winner(self) -> str | None:
        """The better kind of weights, "regular" when both are equal; None before the first evaluation."""
        seen = [kind for kind in BEST_FILES if self.best[kind].epoch >= 0]
        return max(seen, key=lambda kind: self.best[kind].score) if seen else None


@dataclass
class Parts:
    """The live objects of a run whose state goes into a checkpoint.

    `model` is the network, `trained` the same as it is trained over several processes.
    """

    model: nn.Module
    trained: nn.Module
    config: ModelConfig
    optimizer: torch.optim.Optimizer
    scheduler: Any
    ema: ModelEma | None
    runtime: Runtime


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights of a module under their published names, adapters merged; all processes must ask."""
    return published_weights(whole(merged_state(module)))


def save_last(path: Path, parts: Parts, state: RunState, description: dict[str, Any], extra: dict[str, Any]) -> None:
    """Write everything a run needs to go on; every process takes part, the first writes.

    Args:
        extra: what the run itself remembers: lengths, the counts of a broken epoch, its logs.
    """
    processes = parts.runtime.processes
    content = {
        "model": whole_weights(parts.model),
        "optimizer": whole(parts.optimizer.state_dict()),
        "lr_scheduler": {k: v for k, v in parts.scheduler.state_dict().items() if k != "lr_lambdas"},
        "epoch": state.epoch if state.judged else state.epoch - 1,
        **description,
        "global_step": state.global_step,
        "position": {"epoch": state.epoch, "step": state.step, "judged": state.judged, "ended": state.ended},
        "seed": state.seed,
        "best": {kind: asdict(best) for kind, best in state.best.items()},
        "smoothed": state.smoothed,
        "early_stopping": {"best": state.stopping.best, "counter": state.stopping.counter},
        "rng": processes.gather(random_state()),
        "scaler": parts.runtime.scaler.state_dict(),
        "pieces": parts.runtime.pieces,
        "param_names": _names(parts.optimizer),
        "adapters": whole(adapter_state(parts.model)),
        **extra,
    }
    if parts.ema is not None:
        content["ema_model"] = whole_weights(parts.ema.module)
        content["ema_adapters"] = whole(adapter_state(parts.ema.module))
        content["ema_updates"], content["ema_steps"] = parts.ema.updates, parts.ema.steps
    if processes.is_first:
        save_checkpoint(path, content)


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["names"]]


def save_best(path: Path, weights: dict[str, Tensor], epoch: int, score: float, description: dict[str, Any]) -> None:
    """Write the weights of a new best, without anything a run would need to go on."""
    save_checkpoint(path, {"model": weights, "epoch": epoch, "metric": score, **description})


def save_total(
    folder: Path, source: str, description: dict[str, Any], fallback: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Make `checkpoint_best_total.pth` of the better best file, or of `fallback` without one; returns its weights."""
    best = folder / BEST_FILES.get(source, "")
    weights = read_checkpoint(best).weights if source in BEST_FILES and best.is_file() else fallback
    save_checkpoint(folder / BEST_TOTAL, {"model": weights, **description, "best_total_source": source})
    return weights


def newest(folder: Path) -> Path | None:
    """The checkpoint of a folder that a run can go on with and that is farthest; None if there is none."""
    numbered = max(_numbered(folder), key=lambda path: int(path.stem.removeprefix("checkpoint_")), default=None)
    return folder / LAST if (folder / LAST).is_file() else numbered


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint_*.pth") if path.stem.removeprefix("checkpoint_").isdigit()]


def resume_state(checkpoint: Checkpoint, state: RunState, early_stopping: bool) -> None:
    """Position, seed, best scores and the stopping counter of a checkpoint; old files stand at the end of an epoch."""
    content = checkpoint.content
    place = content.get("position", {"epoch": int(content.get("epoch", -1)), "step": 0, "judged": True})
    state.epoch, state.step, state.judged = place["epoch"], place["step"], place["judged"]
    if state.judged:
        state.begin(state.epoch + 1)
    state.global_step = int(content.get("global_step", 0))
    state.seed = content.get("seed", state.seed)
    state.smoothed = content.get("smoothed")
    for kind, values in content.get("best", {}).items():
        state.best[kind] = Best(**values)
    for name, value in content.get("early_stopping", {}).items():
        setattr(state.stopping, name, value)
    # More patience, or none asked for, lets a run go on that had stopped.
    state.ended = early_stopping and place.get("ended", False) and state.stopping.counter >= state.stopping.patience


def resume_ema(checkpoint: Checkpoint, ema: ModelEma) -> list[str]:
    """The average and its counter; says what the file lacks. The average is that of the live weights then."""
    content = checkpoint.content
    if content.get("ema_model") is None:
        return ["weight average"]
    adapters = content.get("ema_adapters") or {}
    ema.module.load_state_dict({**to_internal(content["ema_model"])[0], **adapters})
    ema.updates = int(content.get("ema_updates", 0))
    ema.steps = int(content.get("ema_steps", ema.updates * ema.interval))
    return []


def resume_optimizer(checkpoint: Checkpoint, parts: Parts) -> list[str]:
    """Optimiser, schedule and scaler; says what the file lacks, which starts fresh."""
    content, optimizer = checkpoint.content, parts.optimizer
    if "scaler" in content and parts.runtime.scaler.is_enabled():
        parts.runtime.scaler.load_state_dict(content["scaler"])
    parts.runtime.pieces = int(content.get("pieces", 1))
    saved, names = content.get("optimizer"), content.get("param_names")
    if not saved or not names:
        return ["optimiser and schedule"]
    if names != _names(optimizer):
        return ["optimiser and schedule (other parameters are trained now)"]
    if set(saved["param_groups"][0]) != set(optimizer.param_groups[0]):
        return ["optimiser and schedule (another optimiser is used now)"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots = {i: {k: split_like(v, parameters[i]) for k, v in slot.items()} for i, slot in saved["state"].items()}
    optimizer.load_state_dict({**saved, "state": slots})
    parts.scheduler.load_state_dict({**parts.scheduler.state_dict(), **content["lr_scheduler"]})
    return []


def resume_generators(checkpoint: Checkpoint, processes: Processes) -> list[str]:
    """The random generators of this process; says so when the file was written by another number of processes."""
    states = checkpoint.content.get("rng")
    states = [states] if isinstance(states, dict) else states or []
    if len(states) != processes.world:
        return ["random generators"]
    restore_random_state(states[processes.rank])
    return []


def set_aside(folder: Path, names: Sequence[str] = OF_A_RUN) -> Path | None:
    """Move the files of an earlier run, or some others, to a folder of their own, so that none is lost or mistaken."""
    numbered = [*_numbered(folder), *folder.glob("bad_pictures_process_*.txt")] if names is OF_A_RUN else []
    left = [path for path in (*(folder / name for name in names), *numbered) if path.exists()]
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
    """Let a run go on in another folder: its best files come along; a best without its file is forgotten."""
    if old.resolve() != folder.resolve():
        for name in BEST_FILES.values():
            if (old / name).is_file() and not (folder / name).exists():
                with replacing(folder / name) as handle:
                    handle.write((old / name).read_bytes())
    for kind, name in BEST_FILES.items():
        if not (folder / name).is_file():
            state.best[kind] = Best()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once."""
    with replacing(path, "w") as handle:
        json.dump(content, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
