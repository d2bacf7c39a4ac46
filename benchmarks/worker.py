"""One side of `compare.py`: runs in this package's environment or in that of the published one, and times tasks.

Reads one JSON request per line from standard input and answers with one JSON line. Both packages answer the same
requests; where they differ, the function says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from operators import CountOperators


def allow_foreign_torchvision() -> None:
    """Let a CUDA build of torchvision import beside a CPU build of torch: its operators get their names alone."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        backward = [
            f"_{name}_backward" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
        ]
        plain = ["nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
        for name in plain + backward:
            library.define(f"{name}(Tensor x) -> Tensor")
        globals()["_library"] = library
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]


allow_foreign_torchvision()

import rfdetr  # noqa: E402

OURS = (Path(rfdetr.__file__).parent / "models" / "detector.py").is_file()
CLASSES = {"nano": "RFDETRNano", "base": "RFDETRBase", "medium": "RFDETRMedium", "seg-nano": "RFDETRSegNano"}
MASK_BIAS = -1.0
# Where models live: "cpu" or "cuda"; and the type of mixed precision in training steps there.
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cpu"
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(sys.argv[3] if len(sys.argv) > 3 else "")
state: dict = {}


def peak_mb() -> float:
    """The most memory this process has held since the last call, in MB: the GPU's, or its own (Linux)."""
    if DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def timed(action, rounds: int = 1) -> dict:
    """Wall and CPU seconds of the fastest of `rounds` calls, and the peak of memory in MB."""
    best = {"wall": float("inf"), "cpu": float("inf")}
    peak_mb()
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        best["wall"] = min(best["wall"], time.perf_counter() - wall)
        best["cpu"] = min(best["cpu"], time.process_time() - cpu)
    return {**best, "peak": peak_mb()}


def make_model(size: str, weights: str | None, **options):
    return getattr(rfdetr, CLASSES[size])(pretrain_weights=weights, device=DEVICE, **options)


def save_weights(size: str, path: str) -> dict:
    """Random weights under published names, in a file that both packages read. Asked of this package."""
    from rfdetr.checkpoints.save import description, published_weights, save_checkpoint

    torch.manual_seed(0)
    model = make_model(size, None)
    if size.startswith("seg"):
        with torch.no_grad():
            # Masks of some objects' size instead of noise over the whole picture, which no trained network gives.
            model.model.model.mask_head.bias.fill_(MASK_BIAS)
    about = description(model.model_config, model.class_names)
    save_checkpoint(Path(path), {"model": published_weights(model.model.model.state_dict()), **about})
    return {}


def construct(size: str, weights: str) -> dict:
    make_model(size, weights)
    return timed(lambda: make_model(size, weights))


def prepare_predict(size: str, weights: str, best: bool = False, backend: str = "torch") -> dict:
    model = make_model(size, weights, **({"backend": backend} if backend != "torch" else {}))
    if best:
        model.inference(compile=True, batch_size=1)
    state["predict", size, best, backend] = model
    return {}


def predict(size: str, height: int, width: int, best: bool = False, backend: str = "torch", count: int = 1) -> dict:
    """One picture, or a list; seconds are those of a picture."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    model = state["predict", size, best, backend]
    found = model.predict(image, threshold=0.0)
    images = image if count == 1 else [image] * count
    answer = timed(lambda: model.predict(images, threshold=0.5), rounds=2)
    answer |= {clock: answer[clock] / count for clock in ("wall", "cpu")}
    return {**answer, "scores": [round(float(score), 5) for score in found.confidence[:20]]}


def overhead(size: str) -> dict:
    """Seconds of `predict`, and of the forward pass alone, on a picture of 480 x 640. Asked of this package."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    model = state["predict", size, False, "torch"]
    side = model.model.resolution
    network, inputs = model.model.ready(), torch.randn(1, 3, side, side)

    def forward() -> None:
        with torch.inference_mode():
            network(inputs, last_only=True)

    forward()
    return {"predict": timed(lambda: model.predict(image), 3)["wall"], "forward": timed(forward, 3)["wall"]}


def export(size: str, weights: str, folder: str) -> dict:
    """A file of a model for ONNX Runtime. Asked of this package."""
    return {"path": str(make_model(size, weights).export(folder))}


def prepare_step(size: str, weights: str, best: bool = False) -> dict:
    """Model, losses, optimiser and average: ours as a run sets them up, the published ones with AdamW's foreach.

    The best settings are the compiled network, and on a GPU the fused optimiser for both.
    """
    model = make_model(size, weights)
    net = model.model.model.train()
    parameters = [p for p in net.parameters() if p.requires_grad]
    if OURS:
        from rfdetr.models.build import build_criterion
        from rfdetr.training.optim import Rates, build_optimizer
        from rfdetr.training.runtime import keeping_memory

        options = model.get_train_config(dataset_dir=".")
        criterion = build_criterion(model.model_config, options).train()
        optimizer = build_optimizer(net, Rates(1e-6, 1e-6, 1e-4, 0.8, 0.7, 12), fused=True)
        state["memory"] = contextlib.ExitStack()
        state["memory"].enter_context(keeping_memory(torch.device(DEVICE)))
    else:
        from rfdetr.config import SegmentationTrainConfig, TrainConfig
        from rfdetr.models import build_criterion_from_config

        kind = SegmentationTrainConfig if size.startswith("seg") else TrainConfig
        criterion = build_criterion_from_config(model.model_config, kind(dataset_dir="."))[0].train()
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, **({"fused": True} if best else {"foreach": True}))
    if best:
        net = torch.compile(net, dynamic=False)
    state["step", size, best] = net, criterion, optimizer, parameters, [p.detach().clone() for p in parameters]
    return {}


def drawn_batch(size: str, batch: int, resolution: int) -> tuple[torch.Tensor, list[dict]]:
    """Noise, and seven objects in each picture."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, resolution, resolution, generator=random)
    targets = [
        {
            "labels": torch.randint(0, 90, (7,), generator=random),
            "boxes": torch.rand(7, 4, generator=random) * 0.3 + 0.2,
        }
        for _ in range(batch)
    ]
    for target in targets if size.startswith("seg") else ():
        target["masks"] = discs(target["boxes"], resolution)
    return images.to(DEVICE), [{name: value.to(DEVICE) for name, value in target.items()} for target in targets]


def step(size: str, batch: int, resolution: int, best: bool = False) -> dict:
    net, criterion, optimizer, parameters, average = state["step", size, best]
    images, targets = drawn_batch(size, batch, resolution)
    losses: dict = {}

    def one() -> None:
        with torch.autocast(DEVICE, dtype=AMP, enabled=AMP is not None):
            outputs = net(images)
        losses.update(criterion(outputs, targets))
        total_of(criterion, losses).backward()
        tail(optimizer, parameters, average)

    return {**timed(one), "loss": losses["loss_ce"].item()}


def operators(size: str, batch: int, resolution: int) -> dict:
    """Operators of a step, by part; the optimiser has its state already."""
    net, criterion, optimizer, parameters, average = state["step", size, False]
    images, targets = drawn_batch(size, batch, resolution)
    step(size, batch, resolution)
    found, kept = {}, {}

    def counted(part: str, action) -> None:
        with CountOperators() as counter:
            kept[part] = action()
        found[part] = counter.total

    counted("forward", lambda: net(images))
    counted("losses", lambda: criterion(kept["forward"], targets))
    counted("sum", lambda: total_of(criterion, kept["losses"]))
    counted("backward", lambda: kept["sum"].backward())
    counted("optimiser", lambda: tail(optimizer, parameters, average))
    return found


def total_of(criterion, losses: dict) -> torch.Tensor:
    if OURS:
        return criterion.weighted_total(losses)
    return sum(losses[name] * weight for name, weight in criterion.weight_dict.items() if name in losses)


def tail(optimizer, parameters: list, average: list) -> None:
    """What follows the gradients: clipping, the optimiser, the average."""
    torch.nn.utils.clip_grad_norm_(parameters, 0.1)
    optimizer.step()
    optimizer.zero_grad()
    torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.01)


def discs(boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Masks (T, side, side) bool of discs in boxes (T, 4), relative cxcywh; ours are packed as our loader does."""
    axis = (torch.arange(side) + 0.5) / side
    x, y, width, height = boxes[..., None, None].unbind(1)
    masks = ((axis - x) / width) ** 2 + ((axis[:, None] - y) / height) ** 2 < 0.25
    if not OURS:
        return masks
    return torch.from_numpy(np.packbits(masks.numpy(), axis=0, bitorder="little"))


def epochs(size: str, weights: str, folder: str, count: int, batch: int, resolution: int) -> dict:
    """A run of `train` with its loader, evaluation and files, as everybody calls it."""
    model = make_model(size, weights, resolution=resolution)
    options = {"batch_size": batch, "grad_accum_steps": 1, "tensorboard": False, "run_test": False}
    return timed(lambda: model.train(dataset_dir=folder, output_dir=f"{folder}/run", epochs=count, **options))


def prepare_evaluate(size: str, weights: str) -> dict:
    state["evaluate", size] = make_model(size, weights, num_classes=90)
    return {}


def evaluate(size: str, folder: str) -> dict:
    """A pass over the pictures of the test split, drawn ones, with masks where the model has them."""
    model, found = state["evaluate", size], {}
    options = {"dataset_dir": folder, "split": "test", "batch_size": 4, "num_workers": 0}
    answer = timed(lambda: found.update(model.evaluate(**options)))
    return {**answer, "metrics": found}


def prepare_loader(folder: str, workers: int) -> dict:
    """Training loader of nano with its default settings."""
    from rfdetr.config import RFDETRNanoConfig, TrainConfig

    options = {"dataset_dir": folder, "num_workers": workers, "batch_size": 8, "grad_accum_steps": 1}
    config = RFDETRNanoConfig(pretrain_weights=None, num_classes=4)
    if OURS:
        state["loader", workers] = our_loader(TrainConfig(**options), config)
        return {}
    from rfdetr.training import RFDETRDataModule

    data = RFDETRDataModule(config, TrainConfig(**options))
    data.setup("fit")
    state["loader", workers] = data.train_dataloader()
    return {}


def our_loader(options, config):
    from rfdetr.datasets.build import build_train_loader
    from rfdetr.datasets.layout import read_split
    from rfdetr.datasets.loader import TrainOrder

    annotations = read_split(Path(options.dataset_dir), "train")
    return build_train_loader(options, config, annotations, TrainOrder(len(annotations), options.batch_size, 0), False)


def cpu_seconds() -> float:
    """CPU seconds so far of this process, of its children, and of those that have ended (Linux)."""
    tick, own = os.sysconf("SC_CLK_TCK"), os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            with contextlib.suppress(FileNotFoundError):
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / tick
    return total


def loader(workers: int) -> dict:
    """Seconds per picture over one epoch; CPU seconds include the loading processes."""
    before, started, count = cpu_seconds(), time.perf_counter(), 0
    for batch in state["loader", workers]:
        count += len(batch[1])
    wall, cpu = time.perf_counter() - started, cpu_seconds() - before
    return {"wall": wall / count, "cpu": cpu / count, "pictures": count}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print must not mix with the answers
    print(json.dumps({"ours": OURS, "version": version("rfdetr")}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        task = globals()[request.pop("task")]
        try:
            answer = task(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
