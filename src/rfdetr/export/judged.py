"""Exported files judged on a data set, by the same evaluation as models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.config import ModelConfig, train_config_class
from rfdetr.export.files import Runtime
from rfdetr.export.graph import RAW
from rfdetr.models.build import build_postprocess
from rfdetr.training.judge import evaluate_split

if TYPE_CHECKING:
    from rfdetr.export.predictor import ExportedModel


class FileNetwork(nn.Module):
    """The network in a file; it has no parameters. Takes any number of pictures, whatever the file takes at once."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, images: Tensor, mask: Tensor | None = None, **_: bool) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) to `pred_boxes`, `pred_logits` and what else the network has."""
        count = len(images)
        size = self.runtime.shape[0] or count
        filled = F.pad(images, (0, 0) * 3 + (0, -count % size))
        runs = [self.runtime.run(part.numpy()) for part in filled.split(size)]
        joined = {name: np.concatenate([run[name] for run in runs])[:count] for name in runs[0]}
        return {RAW[name]: torch.from_numpy(values).float() for name, values in joined.items()}


class JudgedFile:
    """A file with what has to be known to judge it (`rfdetr.training.judge.Judged`)."""

    def __init__(self, exported: ExportedModel) -> None:
        facts = exported.facts
        self.class_names, self.class_labels = exported.class_names, exported.class_labels
        self.has_names, self.thresholds, self.origin = facts.has_names, exported.thresholds, str(exported.path)
        keypoints = dict.fromkeys(("use_grouppose_keypoints", "dual_projector", "dual_projector_kp_only"), True)
        keypoints |= {"num_keypoints_per_class": list(facts.schema)}
        self.config = ModelConfig(
            resolution=facts.hw[0],
            # Of patches and windows nothing but their product matters outside of the network.
            patch_size=facts.block,
            num_windows=1,
            num_classes=facts.labels.count - 1,
            num_select=facts.num_select,
            model_name=facts.model_name or None,
            segmentation_head=facts.task == "segment",
            postprocess_trace_alpha=facts.trace_alpha,
            pretrain_weights=exported.path,
            device="cpu",
            **(keypoints if facts.task == "keypoints" else {}),
        )
        self.postprocess = build_postprocess(self.config)
        self._network = FileNetwork(exported.runtime)

    def ready(self) -> nn.Module:
        """The network, which is always where it runs."""
        return self._network


def judge(
    exported: ExportedModel,
    dataset_dir: str | Path | Sequence[str | Path] | None,
    split: str,
    report_dir: str | Path | None,
    resolution: int | None,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """See `ExportedModel.evaluate`."""
    path, facts = exported.path, exported.facts
    if facts.final or facts.hw[0] != facts.hw[1]:
        raise ValueError(f"{path}: only files of square inputs that were exported without postprocess=True are judged")
    if resolution not in (None, facts.hw[0]):
        raise ValueError(
            f"resolution={resolution}: {path} takes {facts.hw[0]} pixels; export the model at another shape"
        )
    judged = JudgedFile(exported)
    config = train_config_class(judged.config)(dataset_dir=dataset_dir, **options)
    if not config.square_resize_div_64:
        raise ValueError(f"square_resize_div_64=False: {path} takes squares of {facts.hw[0]} pixels alone")
    if config.fp16_eval:
        raise ValueError(f"fp16_eval=True: the precision of {path} is fixed; leave the option out")
    found = evaluate_split(judged, config, split, report_dir)
    exported.thresholds = judged.thresholds
    return found
