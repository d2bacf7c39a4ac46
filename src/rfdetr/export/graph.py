"""The network as exports see it: a copy with constants in place and a tuple as output."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from rfdetr.models.detector import Detector


class ExportGraph(nn.Module):
    """Normalised images (B, 3, H, W) to (`boxes` (B, Q, 4) relative cxcywh, `logits` (B, Q, C)), boxes first."""

    def __init__(self, model: Detector, side: int) -> None:
        super().__init__()
        # A copy on the CPU: the live model keeps its own position table and device.
        self.model = copy.deepcopy(model).cpu().requires_grad_(False)
        self.model.encoder.resize_position_table(side // model.encoder.patch_size)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(images, last_only=True)
        return outputs["pred_boxes"], outputs["pred_logits"]
