"""The parameter groups of a run, for training loops of one's own."""

from __future__ import annotations

from typing import Any

from rfdetr.config import TrainConfig
from rfdetr.training.optim import Rates, parameter_groups


def get_param_dict(args: Any, model_without_ddp: Any) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, with the learning rate and weight decay that `train()` gives each parameter.

    Args:
        args: has the options of `TrainConfig` that concern rates, and `out_feature_indexes`; absent ones are defaults.
    """
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    lr, lr_encoder, weight_decay, layer_decay, component_decay = (
        float(getattr(args, name, defaults[name]))
        for name in ("lr", "lr_encoder", "weight_decay", "lr_vit_layer_decay", "lr_component_decay")
    )
    taps = getattr(args, "out_feature_indexes", None) or model_without_ddp.encoder.taps
    return parameter_groups(
        model_without_ddp, Rates(lr, lr_encoder, weight_decay, layer_decay, component_decay, max(taps))
    )
