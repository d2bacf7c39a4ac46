"""The published weight files: where they are, how to know them, and how they reach the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

from rfdetr.variants import VARIANTS

BASE_URL = "https://storage.googleapis.com/rfdetr/"

# local file name: (path below BASE_URL, MD5)
PUBLISHED = {
    "rf-detr-nano.pth": ("nano_coco/checkpoint_best_regular.pth", "fb6504cce7fbdc783f7a46991f07639f"),
    "rf-detr-small.pth": ("small_coco/checkpoint_best_regular.pth", "fb37061c1af7bace359c91b723a8d5c1"),
    "rf-detr-medium.pth": ("medium_coco/checkpoint_best_regular.pth", "7223f764a87b863f02eb8d52bf0ce2ee"),
    "rf-detr-base.pth": ("rf-detr-base-coco.pth", "b4d3ce46099eaed50626ede388caf979"),
    "rf-detr-base-2.pth": ("rf-detr-base-2.pth", "462f4d9df407ddc1812f42614040e913"),
    "rf-detr-base-o365.pth": (
        "top-secret-1234/lwdetr_dinov2_small_o365_checkpoint.pth",
        "d93f4921ccbb0f0a2e4364bed290892b",
    ),
    "rf-detr-large-2026.pth": ("rf-detr-large-2026.pth", "5cb72153541cbcb9aa6efa26222acc75"),
    "rf-detr-large.pth": ("rf-detr-large.pth", "992c8e862aa733a7bb2777e45d49f1a0"),
    "rf-detr-seg-preview.pt": ("rf-detr-seg-preview.pt", "e35820c28fb86080558123e47a5e49ca"),
    "rf-detr-seg-nano.pt": ("rf-detr-seg-n-ft.pth", "9995497791d0ff1664a1d9ddee9cfd20"),
    "rf-detr-seg-small.pt": ("rf-detr-seg-s-ft.pth", "0a2a3006381d0c42853907e700eadd08"),
    "rf-detr-seg-medium.pt": ("rf-detr-seg-m-ft.pth", "a49af1562c3719227ad43d0ca53b4c7a"),
    "rf-detr-seg-large.pt": ("rf-detr-seg-l-ft.pth", "275f7b094909544ed2841c94a677d07e"),
    "rf-detr-seg-xlarge.pt": ("rf-detr-seg-xl-ft.pth", "3693b35d0eea86ebb3e0444f4a611fba"),
    "rf-detr-seg-xxlarge.pt": ("rf-detr-seg-2xl-ft.pth", "040bc3412af840fa8a47e0ff69b552ba"),
    "rf-detr-keypoint-preview-xlarge.pth": (
        "rf-detr-keypoint-preview-xlarge.pth",
        "6de511943ee85a547d4c5cb527daf0eb",
    ),
}
# The weights of these sizes are under the Platform Model License 1.0, so they are not fetched from here.
OTHER_LICENSE = {"rf-detr-xlarge.pth", "rf-detr-xxlarge.pth"}


def cache_folder() -> Path:
    """Where downloaded weights live: RF_HOME, else ROBOFLOW_HOME, else ~/.roboflow/models; empty counts as unset."""
    chosen = os.environ.get("RF_HOME") or os.environ.get("ROBOFLOW_HOME") or "~/.roboflow/models"
    return Path(chosen).expanduser()


def find_weights(name: str) -> Path:
    """The local file of `pretrain_weights`: a path as it is, a bare name from the cache folder, fetched if published.

    Raises:
        FileNotFoundError: the file is not there and is not a published one.
        ConnectionError: it could not be fetched; the message says how to place it by hand.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _compared(path) if path.name == name else path
    if path.is_dir():
        raise FileNotFoundError(f"pretrain_weights={name!r} is a folder; give the checkpoint file itself")
    if path.name != name:
        raise FileNotFoundError(f"pretrain_weights={name!r}: there is no such file")
    cached = cache_folder() / name
    if cached.is_file():
        return _compared(cached)
    if name in OTHER_LICENSE:
        raise FileNotFoundError(_license_text(name))
    if name not in PUBLISHED:
        raise FileNotFoundError(
            f"pretrain_weights={name!r}: there is no such file here or in {cache_folder()}. "
            f"The published files are {', '.join(PUBLISHED)}"
        )
    return download(name)


def _compared(path: Path) -> Path:
    """A file that is there is used as it is: under a published name it may be the user's own."""
    if path.name in PUBLISHED and _md5(path) != PUBLISHED[path.name][1]:
        warnings.warn(f"{path} is not the published file of that name (its MD5 differs); it is used", stacklevel=6)
    return path


def _license_text(what: str) -> str:
    return (
        f"{what}: the XLarge and 2XLarge weights are under the Platform Model License 1.0, not Apache-2.0, and are not "
        "fetched by this package. Pass pretrain_weights=<path> of a file you are licensed to use, or "
        "pretrain_weights=None for random weights"
    )


def require_weights(variant: str | None, given: bool) -> None:
    """Refuse to build a size without published Apache weights unless the user chose `pretrain_weights`."""
    if variant and not given and VARIANTS[variant].weights is None:
        raise ValueError(_license_text(VARIANTS[variant].size))


def download(name: str) -> Path:
    """Fetch a published file into the cache folder: resumed where it stopped, checked by MD5, then renamed."""
    remote, md5 = PUBLISHED[name]
    target = cache_folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(name + ".part")
    with _locked(target.with_name(name + ".lock")):
        if target.is_file():
            return target
        try:
            _fetch(BASE_URL + remote, part)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"{name} could not be fetched from {BASE_URL + remote} ({error}). Without a network, place that "
                f"file as {target} (MD5 {md5}), or set RF_HOME to the folder that has it; "
                "pretrain_weights=None needs no file"
            ) from error
        found = _md5(part)
        if found != md5:
            part.unlink()
            raise ConnectionError(
                f"{name} from {BASE_URL + remote} is damaged: its MD5 is {found}, not {md5}; it was not kept, try again"
            )
        part.replace(target)
    return target


def _fetch(url: str, part: Path) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        return  # nothing is left to fetch
    with response:
        resumed = response.status == 206
        total = int(response.headers.get("Content-Length") or 0) + (have if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(total=total or None, initial=have if resumed else 0, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(1 << 20):
                out.write(chunk)
                bar.update(len(chunk))
    if total and part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a file; the others wait. The lock ends with the process that holds it."""
    with path.open("a+") as handle:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
