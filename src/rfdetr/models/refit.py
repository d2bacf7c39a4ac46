"""A network in memory fitted to other classes and keypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rfdetr.models.detector import Detector
from rfdetr.models.keypoint_network import KeypointNetwork, schema_masks

# Outputs of a keypoint that hold its precision.
_PRECISION = slice(4, 7)


def resize_rows(tensor: Tensor, rows: int) -> Tensor:
    """Cut or cyclically repeat the first axis: new row i is old row i mod the old count; zeros where there was none."""
    if not len(tensor):
        return tensor.new_zeros(rows, *tensor.shape[1:])
    return tensor[torch.arange(rows, device=tensor.device) % len(tensor)]


@torch.no_grad()
def resize_class_heads(model: Detector, rows: int) -> None:
    """Give the class heads `rows` outputs: old rows are cut or repeated in turn."""
    for head, axis in ((model.class_head, 0), (model.proposals.classes, 1)):
        for name in ("weight", "bias"):
            resized = resize_rows(getattr(head, name).transpose(0, axis), rows).transpose(0, axis).contiguous()
            setattr(head, name, nn.Parameter(resized))
    model.class_head.out_features = rows


@torch.no_grad()
def resize_keypoints(network: KeypointNetwork, schema: Sequence[int]) -> None:
    """Give the network other keypoints per class: old tokens are cut or repeated in turn."""
    for owner, name in ((network, "position"), (network.start, "tokens"), (network.box_start, "tokens")):
        setattr(owner, name, nn.Parameter(resize_rows(getattr(owner, name), sum(schema))))
    network.schema = tuple(schema)
    device = network.active.device
    network.active, network.blocked = (mask.to(device) for mask in schema_masks(schema))


@torch.no_grad()
def forget_precision(network: KeypointNetwork) -> None:
    """Let all keypoints start with a precision of one."""
    for parameter in network.head.layers[-1].parameters():
        parameter[_PRECISION] = 0
    for parameter in network.box_heads.layers[-1].parameters():
        parameter[:, _PRECISION] = 0


@torch.no_grad()
def start_rows(head: nn.Module, rows: dict[str, Tensor], kept: dict[int, int]) -> None:
    """Start a class head anew, but for the rows in `kept`, which maps them to their places in `rows`."""
    weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
    fresh = nn.Linear(weight.shape[-1], bias.shape[-1])
    nn.init.constant_(fresh.bias, -math.log(99))
    for name, parameter in head.named_parameters():
        # Grouped heads have the groups before the rows.
        axis = 0 if parameter.dim() == getattr(fresh, name).dim() else 1
        parameter.copy_(getattr(fresh, name).to(parameter.device).expand_as(parameter))
        for new, old in kept.items():
            parameter.select(axis, new).copy_(rows[name].select(axis, old))
