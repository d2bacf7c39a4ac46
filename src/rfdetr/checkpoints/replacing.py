"""Writing files so that an interruption never leaves half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO]:
    """A file to write beside `path`; it takes its place, synced, only when the block ends without an error."""
    part = path.with_name(path.name + ".part")
    try:
        # A name that is no text, of a file or a class, must not end what is being written.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with part.open(mode, encoding=encoding, errors=errors) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
