"""What several processes cost: a training step of two that exchange gradients, beside two that do not.

    python benchmarks/scale.py [--json FILE]

Prints the bytes that a step exchanges, how long this machine exchanges as many alone, and how much of that a step hides
behind its backward pass: the terms of the model in `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from rfdetr import RFDETRNano
from rfdetr.config import TrainConfig
from rfdetr.models.build import build_criterion
from rfdetr.training.optim import Rates, build_optimizer
from rfdetr.training.runtime import Processes, Runtime

WORLD = 2


def fastest(action: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    action()
    best = float("inf")
    for _ in range(rounds):
        dist.barrier()
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def work(rank: int, store: str, options: argparse.Namespace) -> None:
    """One of the processes; the first writes what it measured."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    found: dict[str, float] = {"bytes": 0}
    for strategy in ("alone", "ddp", "ddp, accumulating", "fsdp"):
        found[strategy] = fastest(step_of(strategy, rank, options, found), options.rounds)
    gradients = torch.zeros(int(found["bytes"]) // 4)
    found["exchange"] = fastest(lambda: dist.all_reduce(gradients), options.rounds)
    if rank == 0:
        Path(f"{store}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def step_of(strategy: str, rank: int, options: argparse.Namespace, found: dict[str, float]) -> Callable[[], None]:
    """An optimiser step of nano as a run makes it; of "accumulating" it has two backward passes and one exchange."""
    torch.manual_seed(0)
    model = RFDETRNano(pretrain_weights=None, resolution=options.resolution, device="cpu")
    network = model.model.ready().train()
    processes = Processes() if strategy == "alone" else Processes(rank, WORLD, rank)
    runtime = Runtime(torch.device("cpu"), None, processes, strategy == "fsdp")
    trained = runtime.over_processes(network, (*network.encoder.blocks, *network.decoder.layers))
    if strategy == "ddp":
        count_bytes(trained, found)
    criterion = build_criterion(model.model_config, TrainConfig(dataset_dir=".")).train()
    optimizer = build_optimizer(network, Rates(1e-6, 1e-6, 1e-4, 0.8, 0.7, 12), fused=strategy != "fsdp")
    images = torch.randn(options.batch, 3, options.resolution, options.resolution)
    targets = [{"labels": torch.tensor([0, 1]), "boxes": torch.rand(2, 4) * 0.3 + 0.2} for _ in range(options.batch)]
    passes = 2 if "accumulating" in strategy else 1

    def step() -> None:
        for number in range(passes):
            with runtime.last_of_step(trained, number == passes - 1):
                runtime.backward(criterion.weighted_total(criterion(trained(images), targets)))
        runtime.optimiser_step(optimizer, 0.1)

    return step


def count_bytes(module: torch.nn.parallel.DistributedDataParallel, found: dict[str, float]) -> None:
    """Note the bytes of all buckets of a step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    def counted(state: None, bucket: dist.GradBucket) -> torch.futures.Future:
        if bucket.index() == 0:
            found["bytes"] = 0
        found["bytes"] += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(dist.group.WORLD, bucket)

    counted.__annotations__["bucket"] = dist.GradBucket  # the text of a later import is not enough for torch
    counted.__annotations__["return"] = torch.futures.Future[torch.Tensor]
    module.register_comm_hook(None, counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="pictures per process")
    parser.add_argument("--resolution", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        multiprocessing.spawn(work, (store, options), nprocs=WORLD)
        found = json.loads(Path(f"{store}.json").read_text())
    alone, ddp, exchange = found["alone"], found["ddp"], found["exchange"]
    print(f"nano, {options.batch} pictures of {options.resolution} pixels per process, one thread each")
    print(f"{found['bytes'] / 2**20:.0f} MiB of gradients per step; exchanged alone in {exchange * 1e3:.0f} ms")
    for name in ("alone", "ddp", "ddp, accumulating", "fsdp"):
        passes = 2 if "accumulating" in name else 1
        seconds = found[name] / passes
        print(f"{name:20s} {seconds * 1e3:8.0f} ms per backward pass, {seconds / alone:.2f} of one alone")
    more = (ddp - alone) * 1e3
    print(
        f"DDP adds {more:.0f} ms: 0 if the exchange hides behind the backward pass, else {exchange * 1e3:.0f} and more"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
