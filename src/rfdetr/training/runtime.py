"""Devices, processes and precision: the only file that knows about them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.datasets.batch import Batch
from rfdetr.datasets.transforms import normalise


def select_device(wanted: str = "auto") -> torch.device:
    """The device to use; "auto" is CUDA, else MPS, else the CPU. CUDA is asked about, never started.

    Raises:
        ValueError: no such device exists here; the message lists those that do.
    """
    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    there = [f"cuda:{i}" for i in range(cuda)] + ["mps"] * mps + ["cpu"]
    if wanted in ("auto", "cuda" if cuda else "auto"):
        return torch.device(there[0])
    if wanted not in there:
        raise ValueError(f"device={wanted!r} does not exist here; there are auto, {', '.join(there)}")
    return torch.device(wanted)


def mixed_precision(amp_dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The type of the matrix products, None for float32: bfloat16 where the device has it natively, else float16."""
    if amp_dtype is None or (amp_dtype == "auto" and device.type == "cpu"):
        return None
    if amp_dtype == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[amp_dtype]


@dataclass
class Runtime:
    """One device and one precision.

    Args:
        amp: type of mixed precision, None for float32.
    """

    device: torch.device
    amp: torch.dtype | None = None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision for a forward pass; losses are computed outside of it."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def to_device(self, batch: Batch) -> Batch:
        """A batch on the device, normalised; padding is zero, targets are tensors."""
        samples, targets = batch
        samples = samples.to(self.device, non_blocking=True)
        samples.tensors = normalise(samples.tensors)
        if samples.mask is not None:
            samples.tensors = samples.tensors.masked_fill(samples.mask.unsqueeze(1), 0.0)
        moved = [
            {k: torch.as_tensor(v).to(self.device, non_blocking=True) for k, v in target.items()} for target in targets
        ]
        return samples, moved

    @staticmethod
    def resize(batch: Batch, size: int) -> Batch:
        """A batch at another square size: bilinear, half-pixel, not antialiased; targets are relative and stay."""
        samples, targets = batch
        if samples.tensors.shape[-2:] != (size, size):
            samples.tensors = F.interpolate(samples.tensors, (size, size), mode="bilinear", align_corners=False)
            if samples.mask is not None:
                mask = F.interpolate(samples.mask[:, None].float(), (size, size), mode="nearest")
                samples.mask = mask[:, 0].bool()
        return samples, targets

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()

    def optimiser_step(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """Clip all gradients together to `max_norm` (0 is off), move the weights, forget the gradients."""
        self.scaler.unscale_(optimizer)
        if max_norm > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def keeping_memory(device: torch.device) -> Iterator[None]:
    """Let a run on the CPU keep the memory of its tensors from step to step.

    The C library of Linux gives large blocks back at once, so that every step pays for fresh pages again.
    """
    library = ctypes.CDLL(None) if device.type == "cpu" and platform.libc_ver()[0] == "glibc" else None
    if library is None:
        yield
        return
    trim_threshold, mmap_max = -1, -4  # names of mallopt's parameters in malloc.h
    library.mallopt(trim_threshold, 2**31 - 1)
    library.mallopt(mmap_max, 0)
    try:
        yield
    finally:
        library.mallopt(trim_threshold, 128 * 1024)
        library.mallopt(mmap_max, 65536)
        library.malloc_trim(0)


def refuse_many_processes() -> None:
    """Stop a script that was started several times, instead of letting every copy write the same files.

    Raises:
        RuntimeError: the launcher started more than one process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise RuntimeError(
            f"{world} processes were started (WORLD_SIZE), but this release trains in one; start the script alone"
        )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global state that user code may draw from
    torch.manual_seed(seed)


def random_state() -> dict[str, object]:
    """The state of every generator, in plain types."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    state: dict[str, object] = {
        "python": list(random.getstate()),
        "numpy": {
            **numpy,
            "state": {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)), "pos": numpy["state"]["pos"]},
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict) -> None:
    """Put every generator back to a state of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before is restored."""
    before = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(before)
