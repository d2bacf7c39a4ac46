"""A model as Roboflow takes it: a folder of two files, and its upload by the `roboflow` package."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TextIO

import torch

from rfdetr.checkpoints.replacing import replacing
from rfdetr.checkpoints.save import description, plain, published_weights
from rfdetr.extras import require
from rfdetr.log import logger
from rfdetr.models.lora import merged_state

if TYPE_CHECKING:
    from rfdetr.main import Model

WEIGHTS, NAMES = "weights.pt", "class_names.txt"
# Roboflow reads line i of the names as row i of the class head, and reports no object of a row with this name.
BACKGROUND = "background_class83422"


def write_bundle(model: Model, folder: str | os.PathLike[str]) -> Path:
    """Write `weights.pt` and `class_names.txt`, one name per line, and return the folder; it is created when missing.

    A folder that has both files already holds an earlier bundle, which is replaced.

    Raises:
        FileExistsError: the folder has one of the files without the other, so it is no bundle's.
        RuntimeError: the weights were given up by `inference(inplace=True)`.
    """
    model.refuse_inplace("export_for_roboflow()")
    folder = Path(folder).expanduser()
    found = [path for path in (folder / WEIGHTS, folder / NAMES) if path.exists()]
    if len(found) == 1:
        raise FileExistsError(f"{found[0]} belongs to no earlier bundle and is not replaced; give another folder")
    _write(model, folder, model.class_names)
    return folder


def _write(model: Model, folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as weights, replacing(folder / NAMES, "w") as lines:
        torch.save(_content(model), weights)
        lines.writelines(" ".join(name.splitlines()) + "\n" for name in names)


def _content(model: Model) -> dict[str, Any]:
    origin = model.config.pretrain_weights
    config = model.config.with_values({"pretrain_weights": origin and PureWindowsPath(origin).name})
    told = plain(description(config, model.class_names, {"class_labels": model.raw_labels}))
    if model.first_label and len(model.class_names) == model.config.num_classes:
        # Only the layout of releases 1.2 to 1.4, which has neither of these, says that labels begin at 1.
        del told["model_name"], told["model_config"]
    # The converter reads the settings as attributes.
    told["args"] = argparse.Namespace(**told["args"])
    return {"model": published_weights(merged_state(model.model)), **told, "thresholds": plain(model.thresholds)}


def deploy(
    model: Model,
    own_size: str | None,
    workspace: str,
    project_id: str,
    version: int | str | None = None,
    api_key: str | None = None,
    size: str | None = None,
) -> None:
    """Upload a model to a version of a project on Roboflow.

    Args:
        own_size: size of the model's class, such as "rfdetr-nano"; sent where `size` is None.
        version: number of the project's version; None is the newest.
        api_key: None is the environment variable ROBOFLOW_API_KEY. It appears in no message.

    Raises:
        ImportError: the package `roboflow` is not installed.
        ValueError: no key, no size, no such version, or Roboflow refuses; the message names workspace and project.
        ConnectionError: Roboflow cannot be reached, or does not take the upload.
        RuntimeError: the weights were given up by `inference(inplace=True)`.
    """
    model.refuse_inplace("deploy_to_roboflow()")
    key = (api_key or os.environ.get("ROBOFLOW_API_KEY") or "").strip()
    if not key:
        raise ValueError("deploying needs the key of a Roboflow account: give api_key=... or set ROBOFLOW_API_KEY")
    if not (size or own_size):
        raise ValueError('this class has no size of its own: give size=..., such as "rfdetr-nano"')
    if size and own_size and size != own_size:
        warnings.warn(f"the model is sent as size={size!r}, but its class is {own_size!r}", stacklevel=3)
    service = _Service(key, f"project {project_id!r} of workspace {workspace!r}")
    account = service.ask(require("roboflow").Roboflow, api_key=key)
    project = service.ask(service.ask(account.workspace, workspace).project, project_id)
    goal = service.ask(project.version, _choose_version(service, project, version))
    with tempfile.TemporaryDirectory(prefix="rfdetr-", ignore_cleanup_errors=True) as folder:
        # Without the background's name the SDK puts it first, and every class gets the name of the one before it.
        named = dict(zip(model.class_labels, model.class_names, strict=False))
        _write(model, Path(folder), [named.get(row, BACKGROUND) for row in range(model.config.num_classes + 1)])
        service.ask(goal.deploy, model_type=size or own_size, model_path=folder, filename=WEIGHTS)


def _choose_version(service: _Service, project: Any, version: int | str | None) -> int:
    found = service.ask(project.get_version_information)
    numbers = sorted(int(str(one["id"]).rsplit("/", 1)[-1]) for one in found)
    if not numbers:
        raise ValueError(f"{service.target} has no version to deploy to; generate one on Roboflow first")
    if version is None:
        logger.info("version %d is the newest of %s", numbers[-1], service.target)
        return numbers[-1]
    if str(version) not in map(str, numbers):
        raise ValueError(f"{service.target} has no version {version!r}; it has {', '.join(map(str, numbers))}")
    return int(version)


class _Service:
    """Calls to the SDK; it puts the key into what it prints and raises, and here it is taken out again."""

    def __init__(self, key: str, target: str) -> None:
        self.key, self.target = key, target

    def ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function of the SDK returns; each failure is one ConnectionError or ValueError."""
        output = _Output(self.hide, sys.stdout)
        try:
            with contextlib.redirect_stdout(output):
                answer = function(*arguments, **options)
        except EOFError:  # it asked whether to go on, and there is nobody to answer
            raise ValueError(self._told(output.text)) from None
        except Exception as error:  # the types differ from release to release
            kind = ConnectionError if isinstance(error, OSError) else ValueError
            raise kind(self._told(str(error) or type(error).__name__)) from None
        # What goes wrong with the upload itself is only printed.
        if failures := [line for line in output.text.splitlines() if line.startswith("An error")]:
            raise ConnectionError(self._told(" ".join(failures)))
        return answer

    def _told(self, text: str) -> str:
        return f"{self.target}: {' '.join(self.hide(text).split())}"

    def hide(self, text: str) -> str:
        """The text without the key, in whatever way it is quoted in an address."""
        return re.sub(r"(?<=api_key=)[^&\s'\")]+", "***", text.replace(self.key, "***"))


class _Output(io.TextIOBase):
    """Passes on what is printed, changed by `change`, and remembers it."""

    def __init__(self, change: Callable[[str], str], under: TextIO) -> None:
        self.change, self.under, self.text = change, under, ""

    def write(self, text: str) -> int:
        self.text += self.change(text)
        self.under.write(self.change(text))
        return len(text)

    def flush(self) -> None:
        self.under.flush()
