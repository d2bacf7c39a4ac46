"""Checkpoint files as they lie on the disk: read without running code, and written again with thresholds."""

from __future__ import annotations

import argparse
import pickle
import re
import types
import zipfile
from pathlib import Path
from typing import Any

import torch

from rfdetr.checkpoints.replacing import replacing


class _TextPath(str):
    """Stands in for the path classes of files written on other systems."""

    def __new__(cls, *parts: str) -> _TextPath:
        return super().__new__(cls, "/".join(part.rstrip("/\\") for part in parts))


def _allowed() -> list[Any]:
    paths = ("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath")
    local = ("pathlib._local.PosixPath", "pathlib._local.WindowsPath")
    return [argparse.Namespace, types.SimpleNamespace, *((_TextPath, name) for name in paths + local)]


def read_file(path: Path, trust: bool = False) -> dict[str, Any]:
    """The dict in a checkpoint file. Code in the file is never run unless `trust` is set.

    Raises:
        FileNotFoundError, ValueError: what is wrong with the file, by name.
    """
    if not path.is_file():
        why = "that is a folder; give the file" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"checkpoint {path}: {why}")
    if path.suffix.lower() == ".safetensors":
        from rfdetr.checkpoints.hub import read_safetensors

        return read_safetensors(path)
    zipped = zipfile.is_zipfile(path)
    if zipped and not _is_stored(path):
        raise ValueError(
            f"{path} is not a readable checkpoint (a zip file that is compressed or damaged); a complete file written "
            "by torch.save is needed"
        )
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    except Exception as error:  # bytes that are no checkpoint can make the reader fail with any type
        raise ValueError(_why_unreadable(path, error, trust)) from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, not the dict of a checkpoint")
    return content


def _is_stored(path: Path) -> bool:
    """Whether nothing in a zip file is compressed, as torch.save writes it; a few bytes could unpack to any number."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception:  # bytes that are no checkpoint, as above
        return False


def store_thresholds(path: Path, target: Path, thresholds: dict[str, float]) -> None:
    """Write a checkpoint again, to the same or another file, with the best confidence of each class in it."""
    content = read_file(path)
    with replacing(target) as handle:
        torch.save({**_with_texts(content), "thresholds": thresholds}, handle)


def _with_texts(value: Any) -> Any:
    """The same with texts for the stand-ins of paths, which no reader knows."""
    if isinstance(value, _TextPath):
        return str.__str__(value)
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return type(value)(**_with_texts(vars(value)))
    if type(value) is dict:
        return {key: _with_texts(item) for key, item in value.items()}
    return [_with_texts(item) for item in value] if type(value) is list else value


def _why_unreadable(path: Path, error: Exception, trust: bool) -> str:
    code = [] if trust else _code_in(path, error)
    if code:
        return (
            f"checkpoint {path} asks to run {', '.join(code)} and was not loaded; weights need no code. "
            "Only if you trust who made the file: trust_checkpoint=True"
        )
    lines = str(error).strip().splitlines()
    # What the safe reader says about bytes it does not know is advice to read them unsafely.
    told = lines[0][:120] if lines and not isinstance(error, pickle.UnpicklingError) else type(error).__name__
    return f"{path} is not a readable checkpoint ({told}); a complete file written by torch.save is needed"


def _code_in(path: Path, error: Exception) -> list[str]:
    """Functions and classes beyond the allowed ones that a file names; files older than the zip format tell one."""
    if not zipfile.is_zipfile(path):
        return re.findall(r"GLOBAL (\S+) (?:was not|whose module)", str(error))[:1]
    try:
        with torch.serialization.safe_globals(_allowed()):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the same bytes as above
        return []
