"""One way to open any file that holds a model. Imports no PyTorch for exported ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfdetr.export.files import SUFFIXES

if TYPE_CHECKING:
    from rfdetr.detr import RFDETR
    from rfdetr.export.predictor import ExportedModel

# The weights in a folder of `save_pretrained`.
PRETRAINED = "model.safetensors"
# Suffixes of files with weights.
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")


def load(path: str | Path, **options: Any) -> RFDETR | ExportedModel:
    """The model in a checkpoint or an exported file; both have `predict`, `predict_stream` and `evaluate`.

    Args:
        path: a checkpoint, or a file that `export()` has written, whose runtime is then used.
        options: of a checkpoint those of the model classes, such as `device`; of an exported file `device`, in the
            words of its runtime, and `threads`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the file's runtime is not installed; the message has the pip command.
        TypeError, ValueError: no such option, no kind of file that is known, or a file of something else.
    """
    path = model_file(path)
    if path.suffix.lower() in SUFFIXES:
        from rfdetr.export.predictor import ExportedModel

        if unknown := [name for name in options if name not in ("device", "threads")]:
            raise TypeError(f"{path.name} is an exported file; it takes device and threads, not {', '.join(unknown)}")
        return ExportedModel(path, **options)
    if path.suffix.lower() not in CHECKPOINTS:
        known = ", ".join((*CHECKPOINTS, *SUFFIXES))
        raise ValueError(f"{path}: the suffix {path.suffix!r} is of no model file; known are {known}")
    from rfdetr.detr import from_checkpoint

    return from_checkpoint(path, **options)


def model_file(path: str | Path) -> Path:
    """The path with `~` replaced; of a folder that `save_pretrained` wrote the weights in it."""
    path = Path(path).expanduser()
    return path / PRETRAINED if (path / PRETRAINED).is_file() else path


def open_model(name: str, **options: Any) -> RFDETR | ExportedModel:
    """The model of a size such as "nano", or in a file.

    Raises:
        ValueError: neither; the message lists the sizes.
        As `load` and the model classes.
    """
    size = size_class(name)
    return load(name, **options) if size is None else size(**options)


def size_class(name: str) -> type[RFDETR] | None:
    """The class of a size such as "seg-nano"; None for what can only be a file.

    Raises:
        ValueError: neither; the message lists the sizes.
    """
    from rfdetr.variants import VARIANTS

    if name not in VARIANTS:
        if not Path(name).suffix and not Path(name).exists():
            raise ValueError(f"{name} is neither a file nor a size; sizes are {', '.join(VARIANTS)}")
        return None
    from rfdetr import detr
    from rfdetr.checkpoints.identify import class_name

    return getattr(detr, class_name(name))
