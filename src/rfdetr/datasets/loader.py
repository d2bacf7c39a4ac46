"""Order of the pictures and the processes that load them. Everything drawn is a function of (seed, epoch, position)."""

from __future__ import annotations

import copy
import functools
import gc
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.batch import Batch, Sample, collate
from rfdetr.datasets.cache import PictureCache
from rfdetr.datasets.decode import HW, decode_bytes, decode_reduced
from rfdetr.datasets.transforms import Target, resize_target
from rfdetr.log import logger

SHARED_FROM = 2**16  # bytes; each array that is shared takes a file handle
Transform = Callable[[np.ndarray, Target, np.random.Generator], tuple[np.ndarray, Target]]


class Draw(NamedTuple):
    """Which picture comes at which position of an epoch."""

    epoch: int
    position: int
    index: int


def whole(hw: HW) -> int:
    """Pictures are decoded at their own size."""
    return 1


class Pictures(Dataset):
    """Decoded and transformed pictures with their targets.

    An item is asked for by its position in the split, or by a `Draw`, whose place in the run seeds the transform.

    Args:
        reduction: how many times smaller a picture of a height and width may be decoded.
        cache: keeps what was decoded.
        skip: a picture that cannot be decoded is no error: a `Draw` gets another picture, a position a black one
            without objects, and the target has the positions of such pictures as `unreadable`.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        transform: Transform,
        seed: int = 0,
        *,
        reduction: Callable[[HW], int] = whole,
        cache: PictureCache | None = None,
        skip: bool = False,
    ) -> None:
        self.annotations, self.transform, self.seed = annotations, transform, seed
        self.reduction, self.cache, self.skip = reduction, cache, skip
        self._shared: AnnotationSet | None = None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int | Draw) -> Sample:
        draw = index if isinstance(index, Draw) else Draw(0, index, index)
        try:
            image, target = self._load(draw.index)
        except (OSError, ValueError):
            if not self.skip:
                raise
            image, target = self._another(draw) if isinstance(index, Draw) else self._nothing(index)
        rng = np.random.default_rng((self.seed, draw.epoch, draw.position))
        return self.transform(image, target, rng)

    def _load(self, index: int) -> tuple[np.ndarray, Target]:
        """A picture, maybe reduced, and its target."""
        image = self.cache.get(index) if self.cache is not None else None
        if image is None:
            data, name = self.annotations.read(index), str(self.annotations.path(index))
            image, hw = decode_reduced(data, name, self.reduction)
            if self.cache is not None:
                self.cache.put(index, image)
        else:
            hw = tuple(self.annotations.sizes[index].tolist())
        target = self.annotations.target(index, *hw)
        return image, target if image.shape[:2] == hw else resize_target(target, hw, image.shape[:2])

    def _another(self, draw: Draw) -> tuple[np.ndarray, Target]:
        """What comes in the place of a picture that cannot be decoded: a function of the place in the run too."""
        unreadable, error = [draw.index], None
        for index in np.random.default_rng((self.seed, draw.epoch, draw.position, 1)).integers(len(self), size=20):
            try:
                image, target = self._load(int(index))
            except (OSError, ValueError) as problem:
                unreadable.append(int(index))
                error = problem
            else:
                return image, {**target, "unreadable": np.array(unreadable)}
        raise ValueError(f"of 20 pictures drawn at random none can be decoded; the last error was: {error}")

    def _nothing(self, index: int) -> tuple[np.ndarray, Target]:
        target = self.annotations.target(index, 0, 0)  # no box has an extent there
        said = {"orig_size": np.array([1, 1]), "unreadable": np.array([index])}
        return np.zeros((1, 1, 3), np.uint8), {**target, **said}

    def __getstate__(self) -> dict[str, Any]:
        # Only processes that are not forked get a pickled copy; they share the memory of the arrays all the same.
        if self._shared is None:
            self._shared = in_shared_memory(self.annotations)
        return {**self.__dict__, "annotations": self._shared, "_shared": None}


class SharedArray:
    """An array that is pickled as a handle of memory all processes share, and comes out as an array again."""

    def __init__(self, array: np.ndarray) -> None:
        self.tensor = torch.from_numpy(array.copy()).share_memory_()

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.Tensor.numpy, (self.tensor,)


def in_shared_memory(value: Any) -> Any:
    """A copy of a dataclass, to be pickled, with its larger arrays, also those of dataclasses in it, shared."""
    shared = copy.copy(value)
    for name, part in value.__dict__.items():
        if isinstance(part, np.ndarray) and part.nbytes >= SHARED_FROM:
            shared.__dict__[name] = SharedArray(part)
        elif is_dataclass(part):
            shared.__dict__[name] = in_shared_memory(part)
    return shared


class BadPictures:
    """Counts the pictures of a split that could not be decoded.

    Args:
        world: processes that read the split, each a part of it.
    """

    limit = 0.01  # the share from which on they are an error

    def __init__(self, annotations: AnnotationSet, world: int = 1) -> None:
        self.annotations, self.world, self.found = annotations, world, dict[int, str]()

    def note(self, targets: Sequence[Mapping[str, Any]]) -> None:
        """Look into the targets of a batch.

        Raises:
            ValueError: too many pictures are bad; the message names the first.
        """
        for index in [int(index) for target in targets for index in target.get("unreadable", ())]:
            if index not in self.found:
                self.found[index] = self._reason(index)
                logger.warning("left out: %s", self.found[index])
        if len(self.found) > self.limit * len(self.annotations) / self.world:
            raise ValueError(
                f"{len(self.found)} of the {len(self.annotations)} pictures of {self.annotations.source} that were "
                f"read cannot be used, which is more than {self.limit:.0%}; the first: "
                f"{next(iter(self.found.values()))}. Repair or remove them: `rfdetr check --decode` lists them all"
            )

    def _reason(self, index: int) -> str:
        try:
            decode_bytes(self.annotations.read(index), str(self.annotations.path(index)))
        except (OSError, ValueError) as error:
            return str(error)
        return f"picture {self.annotations.path(index)} could not be read, but can be now"


class Loader(DataLoader):
    """A loader of `(NestedTensor, targets)` that knows which pictures it had to leave out."""

    dataset: Pictures  # pyrefly: ignore[bad-override-mutable-attribute]
    bad: BadPictures

    def __iter__(self) -> Iterator[Batch]:  # pyrefly: ignore[bad-override]
        return self._noted(super().__iter__())

    def _noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for samples, targets in batches:
            self.bad.note(targets)
            yield samples, targets


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
        self.positions, self.world = range(rank, size, world), world

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


def start_worker(worker: int) -> None:
    """Set up a loading process: what a signal means is for the process that trains; its memory stays shared."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A collection would write to every object that came with the fork, and so copy the pages that are shared.
    gc.freeze()


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
) -> Loader:
    """A loader of `(NestedTensor, targets)` in the given order."""
    workers = min(num_workers, -(-len(order) // batch_size))
    own = torch.Generator()
    own.manual_seed(seed)
    loader = Loader(
        pictures,
        batch_size=batch_size,
        sampler=order,
        collate_fn=functools.partial(collate, block=block),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0 and (persistent_workers is None or persistent_workers),
        prefetch_factor=(prefetch_factor or 2) if workers else None,
        worker_init_fn=start_worker if workers else None,
        # A generator of its own: loading must not move the random numbers of the network.
        generator=own,
    )
    loader.bad = BadPictures(pictures.annotations, order.world)
    return loader
