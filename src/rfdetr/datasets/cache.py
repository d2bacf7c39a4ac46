"""Decoded pictures kept after their first use, in one file that all processes of a machine share."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

SHARED_MEMORY = Path("/dev/shm")
CONTAINER = Path("/sys/fs/cgroup")
# Here the file needs no name once it is open, so that it vanishes even with a process that is killed.
OPEN_FILES = Path("/proc/self/fd")


class PictureCache:
    """A place for every picture of a split.

    Args:
        sizes: (N, 2), height and width of every picture as it is kept.
        file: which file; one process makes it, the others open it.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, sizes: np.ndarray, file: Path, create: bool = True) -> None:
        self.sizes, self.file = sizes, file
        # One byte per picture says whether it is there.
        self.starts = np.append(0, np.cumsum(sizes.prod(axis=1) * 3)) + len(sizes)
        if create:
            with file.open("xb") as handle:
                _reserve(handle.fileno(), file, self.num_bytes)
        self._open(file)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return int(self.starts[-1])

    def get(self, index: int) -> np.ndarray | None:
        """A copy of a picture (H, W, 3) uint8, None if it was not put yet."""
        if not self._content[index]:
            return None
        return self._content[self.starts[index] : self.starts[index + 1]].reshape(*self.sizes[index], 3).copy()

    def put(self, index: int, picture: np.ndarray) -> None:
        """Keep a picture; one that has another size than its place is not kept."""
        if picture.shape != (*self.sizes[index], 3):
            return
        self._content[self.starts[index] : self.starts[index + 1]] = picture.ravel()
        # Two processes may write the same picture, but none is read before it is whole.
        self._content[index] = 1

    def all_have_opened(self) -> None:
        """Take the name away from the file, which lives on until the last process has closed it."""
        if OPEN_FILES.is_dir():
            self.close()

    def close(self) -> None:
        """Remove the file, if it still has a name."""
        self.file.unlink(missing_ok=True)

    def _open(self, file: Path) -> None:
        self._handle = os.open(file, os.O_RDWR)
        weakref.finalize(self, os.close, self._handle)
        self._content = np.frombuffer(mmap.mmap(self._handle, self.num_bytes), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        there = Path(f"/proc/{os.getpid()}/fd/{self._handle}")
        return {"sizes": self.sizes, "starts": self.starts, "file": self.file, "there": there}

    def __setstate__(self, state: dict[str, Any]) -> None:
        there = state.pop("there")
        self.__dict__.update(state)
        self._open(there if there.exists() else self.file)


def cache_folder(kind: str, folder: Path) -> Path:
    """Where the file of a "ram" or "disk" cache lies; `folder` is that of the run."""
    if kind == "disk":
        return folder
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def _reserve(descriptor: int, file: Path, size: int) -> None:
    """Take the room at once: a write into a file that cannot grow any more would end the process."""
    free = min(shutil.disk_usage(file.parent).free, _free_memory() if file.parent == SHARED_MEMORY else size)
    try:
        if free < size:
            raise OSError
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
    except OSError:
        file.unlink(missing_ok=True)
        raise OSError(
            f"the decoded pictures take {size / 1e9:.1f} GB, but {file.parent} has room for {free / 1e9:.1f} GB; "
            'set cache=None, or cache="disk" with an output_dir where there is room'
        ) from None


def _free_memory() -> int:
    """Bytes of memory that programs can still take, also within the limit of a container."""
    free = 2**63
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free
