"""The network and its losses by their older names, from a namespace of settings."""

from __future__ import annotations

from typing import Any

from rfdetr.config import ModelConfig, fields_of, train_config_class
from rfdetr.models import build
from rfdetr.models.criterion import Criterion as SetCriterion
from rfdetr.models.detector import Detector as LWDETR
from rfdetr.models.heads import MLP as _MLP
from rfdetr.models.postprocess import PostProcess

__all__ = ["LWDETR", "MLP", "PostProcess", "SetCriterion", "build_criterion_and_postprocessors", "build_model"]


class MLP(_MLP):
    """Linear layers with ReLU between them, all but the last one of the hidden width."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__(input_dim, *[hidden_dim] * (num_layers - 1), output_dim)


def build_model(args: Any) -> LWDETR:
    """A network with random weights.

    Args:
        args: a configuration or a namespace with fields of `ModelConfig`, such as `RFDETR.model.args`; those it lacks
            have their defaults, and others are not looked at.
    """
    return build.initialise(build.build_model(_model_config(args)))


def build_criterion_and_postprocessors(args: Any) -> tuple[SetCriterion, PostProcess]:
    """The losses of a run, and what makes detections of the network's outputs; `args` as for `build_model`."""
    config = _model_config(args)
    kind = train_config_class(config)
    given = {"dataset_dir": "", **fields_of(args, kind)}
    return build.build_criterion(config, kind(**given)), build.build_postprocess(config)


def _model_config(args: Any) -> ModelConfig:
    return args if isinstance(args, ModelConfig) else ModelConfig(**fields_of(args, ModelConfig))
