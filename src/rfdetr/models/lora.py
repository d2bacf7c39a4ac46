"""Adapters of low rank on the encoder's attention (DoRA, arXiv 2402.09353): train few values, merge them at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.attention import SelfAttention
from rfdetr.models.backbone import Encoder

# Query, key and value are parts of one matrix; each has an adapter of its own.
PARTS = 3


class AdaptedLinear(nn.Module):
    """A frozen `nn.Linear(D, 3 D)` whose three parts learn a direction, `lora_B @ lora_A`, and a length per row.

    It changes nothing at the start. `weight` and `bias` keep their names, so that plain weights fit.

    Args:
        alpha: the direction is scaled by alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.weight, self.bias = linear.weight, linear.bias  # (3 D, D), (3 D)
        self.requires_grad_(False)
        rows, dim = self.weight.shape
        self.lora_A = nn.Parameter(self.weight.new_empty(PARTS, rank, dim))
        self.lora_B = nn.Parameter(self.weight.new_zeros(PARTS, rows // PARTS, rank))
        for part in self.lora_A.detach():
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self._lengths(self._directions().detach()))  # (3, D)

    def _directions(self) -> Tensor:
        """W + scale B A of each part, (3, D, D)."""
        return self.weight.view(PARTS, -1, self.weight.shape[1]) + self.scale * (self.lora_B @ self.lora_A)

    @staticmethod
    def _lengths(directions: Tensor) -> Tensor:
        return directions.norm(dim=2).clamp_min(1e-12)

    def merged(self) -> Tensor:
        """The weight of the plain linear that does the same, (3 D, D)."""
        # In full precision also under autocast: this is what is saved, so this is what must be trained.
        with torch.autocast(self.weight.device.type, enabled=False):
            directions = self._directions()
            # A constant in the gradient, which saves memory and changes little (section 4.3 of the paper).
            lengths = self._lengths(directions.detach())
            return ((self.magnitude / lengths).unsqueeze(2) * directions).view_as(self.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., 3 D)."""
        return F.linear(tokens, self.merged(), self.bias)

    def to_linear(self) -> nn.Linear:
        """The plain linear that does the same; no random number is drawn for it."""
        rows, dim = self.weight.shape
        linear = nn.Linear(dim, rows, device="meta").train(self.training)
        linear.weight, linear.bias = nn.Parameter(self.merged().detach(), requires_grad=False), self.bias
        return linear


def add_adapters(encoder: Encoder, rank: int = 16, alpha: float = 16.0) -> int:
    """Freeze an encoder and put adapters into its blocks, in place; returns the number of values left to train.

    Blocks behind the last tap get none: nothing reads their output.
    """
    # Kept outside the state dict; `vars` because a module's attributes are parameters and modules.
    vars(encoder)["trainable"] = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    encoder.requires_grad_(False)
    for name, module in list(encoder.blocks[: max(encoder.taps)].named_modules()):
        if isinstance(module, SelfAttention):
            encoder.blocks.set_submodule(f"{name}.qkv", AdaptedLinear(module.qkv, rank, alpha))
    return sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)


def merge_adapters_(model: nn.Module) -> None:
    """Make the adapters of a model part of its plain weights, in place; what they froze becomes trainable again."""
    for name, adapted in adapters_of(model).items():
        model.set_submodule(name, adapted.to_linear())
    for encoder in model.modules():
        if "trainable" in vars(encoder):
            names = vars(encoder).pop("trainable")
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(name in names)


def adapters_of(module: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted linears of a module by name; empty for a plain one."""
    return {name: child for name, child in module.named_modules() if isinstance(child, AdaptedLinear)}


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that a module would have with its adapters merged; it stays as it is."""
    state = dict(module.state_dict())
    for name, adapted in adapters_of(module).items():
        for own in ("lora_A", "lora_B", "magnitude"):
            del state[f"{name}.{own}"]
        state[f"{name}.weight"] = adapted.merged().detach()
    return state


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """Adapters and the weights under them, which a merged state no longer tells apart; empty without adapters."""
    return {
        f"{name}.{own}": tensor
        for name, adapted in adapters_of(module).items()
        for own, tensor in adapted.state_dict().items()
        if own != "bias"
    }


@torch.no_grad()
def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what `adapter_state` gave into a module with adapters.

    Raises:
        ValueError: the module has other adapters; the message names the tensors.
    """
    own = adapter_state(module)
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"other adapters than this model's: {', '.join(wrong[:4])} missing, unknown or of other shape")
    for name, tensor in own.items():
        tensor.copy_(state[name])
