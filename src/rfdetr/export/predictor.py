"""Exported files, opened to be run and judged like the models that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.export.metadata import from_metadata
from rfdetr.extras import require
from rfdetr.models.build import build_postprocess
from rfdetr.training.judge import evaluate_split


class FileNetwork(nn.Module):
    """The network in a file, run on the CPU; it has no parameters.

    Args:
        session: an `onnxruntime.InferenceSession`.
        batch_size: pictures that the file takes at once; None for any number.
    """

    def __init__(self, session: Any, batch_size: int | None) -> None:
        super().__init__()
        self.session, self.batch_size = session, batch_size

    def forward(self, images: Tensor, mask: Tensor | None = None, **_: bool) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) to `pred_boxes` (B, Q, 4) relative cxcywh and `pred_logits` (B, Q, C)."""
        count = len(images)
        size = self.batch_size or count
        filled = F.pad(images, (0, 0) * 3 + (0, -count % size))
        runs = [self.session.run(["dets", "labels"], {"input": part.numpy()}) for part in filled.split(size)]
        boxes, logits = (torch.from_numpy(np.concatenate(parts))[:count] for parts in zip(*runs, strict=True))
        return {"pred_boxes": boxes, "pred_logits": logits}


class ExportedModel:
    """A detector in an ONNX file, with what has to be known to judge it (`rfdetr.training.judge.Judged`).

    Args:
        path: a file that `export()` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is not installed.
        ValueError: it is no ONNX file, no detector, or says nothing about its classes.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | Path) -> None:
        path = Path(path).expanduser()
        session = _open(path)
        batch_size, side, rows = _ports(session, path)
        facts = from_metadata(session.get_modelmeta().custom_metadata_map, path)
        self.class_names: list[str] = facts["class_names"]
        self.class_labels: list[int] = facts["class_labels"]
        self.has_names: bool = facts["has_names"]
        self.thresholds: dict[str, float] = facts["thresholds"]
        self.origin = str(path)
        self.config = ModelConfig(
            resolution=side,
            # Of patches and windows nothing but their product matters outside of the network.
            patch_size=facts["block_size"],
            num_windows=1,
            num_classes=rows - 1,
            num_select=facts["num_select"],
            model_name=facts["model_name"] or None,
            pretrain_weights=path,
            device=str(self.device),
        )
        self.postprocess = build_postprocess(self.config)
        self._network = FileNetwork(session, batch_size)

    def ready(self) -> nn.Module:
        """The network, which is always where it runs."""
        return self._network

    def evaluate(
        self,
        dataset_dir: str | Path | Sequence[str | Path] | None = None,
        *,
        split: str = "test",
        report_dir: str | Path | None = None,
        resolution: int | None = None,
        **options: Any,
    ) -> dict[str, float]:
        """COCO metrics of the file on one split, as `RFDETR.evaluate` gives them for the model.

        Args:
            resolution: that of the file, if given.

        Raises:
            ValueError: options that the file was not made for, or classes that it does not know by name.
            FileExistsError: `report_dir` holds something else than an earlier report.
        """
        config = TrainConfig(dataset_dir=dataset_dir, **options)
        own, path = self.config.resolution, self.config.pretrain_weights
        if resolution not in (None, own):
            raise ValueError(f"resolution={resolution}: {path} takes {own} pixels; export the model at another shape")
        if not config.square_resize_div_64:
            raise ValueError(f"square_resize_div_64=False: {path} takes squares of {own} pixels alone")
        if config.fp16_eval:
            raise ValueError(f"fp16_eval=True: the precision of {path} is fixed; leave the option out")
        return evaluate_split(self, config, split, report_dir)


def _open(path: Path) -> Any:
    """An inference session of a file."""
    runtime = require("onnxruntime")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime has a dozen classes of errors without a common base.
        raise ValueError(f"{path} is no ONNX file that onnxruntime can run: {error}") from error


def _ports(session: Any, path: Path) -> tuple[int | None, int, int]:
    """Batch size (None for any), side of the input and rows of the class head."""
    ports = [(port.name, port.type, port.shape) for port in (*session.get_inputs(), *session.get_outputs())]
    match ports:
        case [
            ("input", "tensor(float)", [batch, 3, int(height), int(width)]),
            ("dets", "tensor(float)", [_, _, 4]),
            ("labels", "tensor(float)", [_, _, int(rows)]),
        ] if height == width:
            return batch if isinstance(batch, int) else None, height, rows
    found = ", ".join(f"{name} {shape} of {kind}" for name, kind, shape in ports)
    raise ValueError(
        f"{path} has the inputs and outputs {found}; a detector that export() has written has input (B, 3, S, S), dets "
        "(B, Q, 4) and labels (B, Q, C) of tensor(float)"
    )
