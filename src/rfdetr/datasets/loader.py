"""Order of the pictures and the processes that load them. Everything drawn is a function of (seed, epoch, position)."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.batch import Sample, collate
from rfdetr.datasets.decode import decode_bytes
from rfdetr.datasets.transforms import Target

Transform = Callable[[np.ndarray, Target, np.random.Generator], tuple[np.ndarray, Target]]


class Draw(NamedTuple):
    """Which picture comes at which position of an epoch."""

    epoch: int
    position: int
    index: int


class Pictures(Dataset):
    """Decoded and transformed pictures with their targets.

    An item is asked for by its position in the split, or by a `Draw`, whose place in the run seeds the transform.
    """

    def __init__(self, annotations: AnnotationSet, transform: Transform, seed: int = 0) -> None:
        self.annotations, self.transform, self.seed = annotations, transform, seed

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int | Draw) -> Sample:
        draw = index if isinstance(index, Draw) else Draw(0, index, index)
        image = decode_bytes(self.annotations.read(draw.index), str(self.annotations.path(draw.index)))
        target = self.annotations.target(draw.index, *image.shape[:2])
        rng = np.random.default_rng((self.seed, draw.epoch, draw.position))
        return self.transform(image, target, rng)


class TrainOrder(Sampler[Draw]):
    """Shuffled order of an epoch, the same whatever the number of loading processes.

    An epoch is a multiple of the effective batch: the pictures are filled up with random repeats. Fewer pictures than
    five effective batches are drawn with replacement, so that an epoch always has five steps.

    Args:
        effective: pictures per optimiser step and process.
        world, rank: processes of the run and which one this is.
    """

    min_steps = 5

    def __init__(self, size: int, effective: int, seed: int, world: int = 1, rank: int = 0) -> None:
        if size < 1:
            raise ValueError("the training split has no pictures")
        self.size, self.effective, self.seed, self.world, self.rank = size, effective, seed, world, rank
        self.epoch, self.first_step = 0, 0
        whole = effective * world
        self.total = max(-(-size // whole), self.min_steps) * whole

    def __len__(self) -> int:
        return self.total // self.world

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch whose order comes next, and the optimiser step of it that comes first."""
        self.epoch, self.first_step = epoch, first_step

    def order(self) -> np.ndarray:
        """Indices of all processes for the chosen epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.size < self.min_steps * self.effective * self.world:
            return rng.integers(self.size, size=self.total)
        return np.concatenate((rng.permutation(self.size), rng.integers(self.size, size=self.total - self.size)))

    def __iter__(self) -> Iterator[Draw]:
        order = self.order()
        first = self.first_step * self.effective * self.world
        for position in range(first + self.rank, self.total, self.world):
            yield Draw(self.epoch, position, int(order[position]))


class EvalOrder(Sampler[int]):
    """Every picture once, in sequence; of several processes each takes every `world`-th."""

    def __init__(self, size: int, rank: int = 0, world: int = 1) -> None:
        self.positions = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


def leave_signals(worker: int) -> None:
    """Let the process that trains decide what a signal means; a loading process goes on until it is told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(
    pictures: Pictures,
    *,
    batch_size: int,
    order: TrainOrder | EvalOrder,
    block: int = 1,
    num_workers: int = 2,
    pin_memory: bool = False,
    persistent_workers: bool | None = None,
    prefetch_factor: int | None = None,
    seed: int = 0,
) -> DataLoader:
    """A loader of `(NestedTensor, targets)` in the given order."""
    workers = min(num_workers, -(-len(order) // batch_size))
    own = torch.Generator()
    own.manual_seed(seed)
    return DataLoader(
        pictures,
        batch_size=batch_size,
        sampler=order,
        collate_fn=functools.partial(collate, block=block),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0 and (persistent_workers is None or persistent_workers),
        prefetch_factor=(prefetch_factor or 2) if workers else None,
        worker_init_fn=leave_signals if workers else None,
        # A generator of its own: loading must not move the random numbers of the network.
        generator=own,
    )
