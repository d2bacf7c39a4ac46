"""Devices, processes and precision: the only file that knows about them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.datasets.batch import Batch
from rfdetr.datasets.transforms import normalise
from rfdetr.log import logger


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


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and what they tell each other; every method must be called by all of them.

    Args:
        rank: which of the `world` processes this is; the first one writes the files.
        local: which one on this machine, so that each takes its own GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, shows progress and talks to services."""
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value summed over the processes."""
        added = torch.tensor(list(values), dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(added)
        return added.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether some process has it set."""
        return [count > 0 for count in self.sum(flags)] if self.world > 1 else list(flags)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The value of the first process."""
        shared = [value]
        if self.world > 1:
            dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


ALONE = Processes()


def launched() -> Processes:
    """This process among those that torchrun, torch.distributed.launch or srun has started; alone without one."""
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) > 1:
        return Processes(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", env["RANK"])))
    # Batch scripts see SLURM's numbers too; only steps of srun are started once per task.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        rank, world = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
        return Processes(rank, world, int(env.get("SLURM_LOCALID", rank)))
    return ALONE


def join(processes: Processes, on_cuda: bool) -> None:
    """Connect this process with the others, once in its life."""
    if processes.world > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        os.environ.setdefault("MASTER_PORT", "29500")
        dist.init_process_group(backend, rank=processes.rank, world_size=processes.world)
        atexit.register(leave)
        if not processes.is_first:
            logger.setLevel("WARNING")


def leave() -> None:
    """Part with the other processes, so that none of them is left waiting."""
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass
class Runtime:
    """One device, one precision, and the processes that train together.

    Args:
        amp: type of mixed precision, None for float32.
        splits_model: the processes share one copy of the weights (FSDP2) instead of holding one each.
    """

    device: torch.device
    amp: torch.dtype | None = None
    processes: Processes = ALONE
    splits_model: bool = False
    scaler: torch.amp.GradScaler = field(init=False)
    # Parts into which a micro-batch is cut since it did not fit into memory.
    pieces: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision for a forward pass; losses are computed outside of it."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def to_device(self, batch: Batch) -> Batch:
        """A batch on the device, normalised; padding is zero, targets are tensors."""
        samples, targets = batch
        samples = samples.to(self.device, non_blocking=True)
        if not samples.is_normalised:
            samples.tensors, samples.is_normalised = normalise(samples.tensors), True
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

    def over_processes(self, module: nn.Module, layers: Iterable[nn.Module] = ()) -> nn.Module:
        """The module as it is trained: as it is, in DDP, or split in place by FSDP2 (arXiv 2304.11277).

        Args:
            layers: parts that FSDP2 gathers one by one; the rest is gathered at once.
        """
        if self.processes.world == 1:
            return module
        if self.splits_model:
            return self.split(module, layers)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)

    def split(self, module: nn.Module, layers: Iterable[nn.Module]) -> nn.Module:
        """Split the weights of a module over the processes, in place."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # Nobody writes into the outputs, of which FSDP2 warns in every pass.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.device.type, (self.processes.world,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    @staticmethod
    def compiled(module: nn.Module, compile: bool, cuda_graphs: bool) -> nn.Module:
        """The module as training calls it: as it is, compiled, or recorded; evaluation calls the module itself."""
        if not (compile or cuda_graphs):
            return module
        # Every size of multi-scale training is compiled once; beyond the limit, torch goes on without.
        settings = torch._dynamo.config
        name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
        setattr(settings, name, max(getattr(settings, name), 64))
        if not compile:
            return cast(nn.Module, torch.compile(module, dynamic=False, backend="cudagraphs"))
        return cast(nn.Module, torch.compile(module, dynamic=False, mode="reduce-overhead" if cuda_graphs else None))

    def last_of_step(self, module: nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged in the last backward pass of a step only."""
        module = _uncompiled(module)
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext() if is_last else module.no_sync()
        if self.splits_model:
            module.set_requires_gradient_sync(is_last)  # pyrefly: ignore[not-callable]
        return contextlib.nullcontext()

    def mean_over_processes(self, count: float) -> float:
        """The mean of a number; each process gives its own."""
        return self.processes.sum([count])[0] / self.processes.world if self.processes.world > 1 else count

    def idle_passes(self, batches: Any) -> int:
        """Forward passes that this process must join after those of its batches: split weights are gathered in each."""
        return max(self.processes.gather(len(batches))) - len(batches) if self.splits_model else 0

    def cut_smaller(self, pictures: int, error: BaseException) -> None:
        """After running out of memory, compute micro-batches of so many pictures in twice as many pieces.

        Raises:
            RuntimeError: a piece is one picture already, or other processes wait for gradients of the whole.
        """
        torch.cuda.empty_cache()
        if self.pieces >= pictures or self.processes.world > 1:
            raise RuntimeError(
                f"out of memory with {-(-pictures // self.pieces)} pictures at a time; use a smaller batch_size with "
                "more grad_accum_steps, gradient_checkpointing=True, a lower resolution, or multi_scale=False"
            ) from error
        self.pieces = min(2 * self.pieces, pictures)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()

    def optimiser_step(self, optimizer: torch.optim.Optimizer, max_norm: float) -> bool:
        """Clip all gradients together to `max_norm` (0 is off), move the weights, forget the gradients.

        Returns:
            Whether the gradients were finite; the weights stay if not. Under fp16 the scaler sees to that.
        """
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        sound = self.scaler.is_enabled() or bool(torch.isfinite(whole(norm)))
        if sound:
            if max_norm > 0:
                nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return sound


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


def _uncompiled(module: nn.Module) -> nn.Module:
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def bare(module: nn.Module) -> nn.Module:
    """The network itself, without what compiles it or trains it over several processes."""
    module = _uncompiled(module)
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(value: Any) -> Any:
    """The same state with every tensor that is split over the processes put together; all processes must ask."""
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item) for item in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def split_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor of an optimiser's state, split over the processes as its parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of the machine, is used up."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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
