"""`train(devices=N)` without a launcher: this process is the first of the run and starts the others itself.

`python -m rfdetr.training.launch FILE` is what the others run; FILE holds the model and the options.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rfdetr.config import TrainConfig
from rfdetr.log import logger
from rfdetr.training.runtime import ALONE, Processes, launched, leave

if TYPE_CHECKING:
    from rfdetr.main import Model


@contextmanager
def helpers(model: Model, config: TrainConfig, changes: dict[str, Any]) -> Iterator[Processes]:
    """This process among those of the run; those that no launcher has started are started here, and end here.

    Raises:
        ValueError: several machines were asked for, which need a launcher.
        RuntimeError: another process failed.
    """
    processes, count = launched(), wanted_processes(config)
    if processes.world > 1:
        if count > 1 and count * config.num_nodes != processes.world:
            text = f"devices={config.devices}, num_nodes={config.num_nodes} are not used: {processes.world} processes"
            warnings.warn(f"{text} were started by the launcher", stacklevel=4)
        yield processes
        return
    if config.num_nodes > 1:
        raise ValueError(
            f"num_nodes={config.num_nodes} needs a launcher on every machine: torchrun --nnodes={config.num_nodes} "
            f"--nproc_per_node={count} --rdzv_backend=c10d --rdzv_endpoint=HOST:PORT script.py"
        )
    if count == 1:
        yield ALONE
        return
    with _started((model, config, changes), count) as first:
        yield first


def wanted_processes(config: TrainConfig) -> int:
    """How many processes `devices` asks for on this machine."""
    if config.devices == "auto":
        if config.device == "cpu" or config.accelerator == "cpu":
            return 1
        return max(1, torch.cuda.device_count())
    return len(config.devices) if isinstance(config.devices, list) else config.devices


# As a launcher would set them.
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")


@contextmanager
def _started(content: tuple[Model, TrainConfig, dict[str, Any]], count: int) -> Iterator[Processes]:
    logger.info("starting %d more processes", count - 1)
    threads, before = torch.get_num_threads(), {name: os.environ.get(name) for name in _ADDRESS}
    address = dict(zip(_ADDRESS, ("127.0.0.1", str(_free_port()), str(count)), strict=True))
    # Processes that share one machine's cores stand in each other's way otherwise.
    each = max(1, (os.cpu_count() or 1) // count)
    # They find what this one finds, such as modules beside the script.
    path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    env = {**os.environ, **address, "WORLD_SIZE": str(count), "OMP_NUM_THREADS": str(each), "PYTHONPATH": path}
    # On a GPU every process would load it to this one's.
    content[0].model.to("cpu")
    with tempfile.TemporaryDirectory(prefix="rfdetr_") as folder:
        job = Path(folder) / "job.pickle"
        with job.open("wb") as handle:
            pickle.dump(content, handle)
        command = [sys.executable, "-m", "rfdetr.training.launch", str(job)]
        others = [
            subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(1, count)
        ]
        os.environ.update(address)
        torch.set_num_threads(min(threads, each))
        try:
            _wait_for(others, job)
            yield Processes(0, count, 0)
            codes: list[int | None] = [other.wait() for other in others]
        except BaseException as error:
            # When one process fails the others lose their connection: the first failure is the cause.
            patience = time.monotonic() + 15 * isinstance(error, Exception)
            codes = [_ended(other, patience - time.monotonic()) for other in others]
            if isinstance(error, Exception) and any(code not in (0, None) for code in codes):
                raise RuntimeError(_failure(codes)) from error
            raise
        finally:
            for other in others:
                other.kill()
                other.wait()
            leave()
            torch.set_num_threads(threads)
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({name: value} if value is not None else {})
    if any(code not in (0, 128 + 15) for code in codes):
        raise RuntimeError(_failure(codes))


def _wait_for(others: list[subprocess.Popen], job: Path) -> None:
    """Return when all others have read the job; one that cannot would let this process wait for it in vain."""
    while not all(job.with_suffix(f".{rank}").exists() for rank in range(1, len(others) + 1)):
        if any(other.poll() not in (0, None) for other in others):
            raise RuntimeError(_failure([other.poll() for other in others]))
        time.sleep(0.02)


def _failure(codes: list[int | None]) -> str:
    rank, code = next((rank, code) for rank, code in enumerate(codes, 1) if code not in (0, None))
    return f"process {rank} of the run ended with code {code}; what it said is printed above"


def _ended(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(timeout=max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def main(job: str) -> None:
    """Take part in a run as one of the other processes."""
    processes = launched()
    model, config, changes = pickle.loads(Path(job).read_bytes())
    Path(job).with_suffix(f".{processes.rank}").touch()
    model.train_in(processes, config, changes, {"on_fit_epoch_end": [], "on_train_batch_start": [], "on_train_end": []})
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
