"""The network: normalised images in, class logits and boxes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfdetr.models.backbone import Encoder
from rfdetr.models.boxes import refine
from rfdetr.models.heads import MLP
from rfdetr.models.projector import Projector
from rfdetr.models.transformer import Decoder, Padding, Proposals, Shapes, padding_of


class Detector(nn.Module):
    """RF-DETR for boxes.

    Args:
        num_queries: learned queries per group.
        groups: query groups trained side by side; evaluation uses the first alone.
        num_logits: class outputs, one more than there are classes.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        proposals: Proposals,
        decoder: Decoder,
        *,
        dim: int,
        num_queries: int,
        groups: int,
        num_logits: int,
    ) -> None:
        super().__init__()
        self.num_queries, self.groups = num_queries, groups
        self.encoder = encoder
        self.projector = projector
        self.proposals = proposals
        self.decoder = decoder
        self.class_head = nn.Linear(dim, num_logits)
        self.box_head = MLP(dim, dim, dim, 4)
        self.query_boxes = nn.Parameter(torch.zeros(groups * num_queries, 4))
        self.query_features = nn.Parameter(torch.zeros(groups * num_queries, dim))

    def forward(self, images: Tensor, mask: Tensor | None = None, *, last_only: bool = False) -> dict:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of patch size x windows.
            mask: (B, H, W) bool, True on padding; None when no image is padded.
            last_only: leave out `aux_outputs` and `enc_outputs`, which only losses need.

        Returns:
            `pred_logits` (B, Q, C), `pred_boxes` (B, Q, 4) as relative cxcywh, `aux_outputs` (a list of the same two
            for the earlier layers) and `enc_outputs` (the same two for the start boxes). In training mode Q counts the
            queries of all groups, group 0 first.
        """
        groups = self.groups if self.training else 1
        maps = self.projector(self.encoder(images))
        shapes: Shapes = tuple((one.shape[-2], one.shape[-1]) for one in maps)
        memory = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)
        padding = None if mask is None or not mask.any() else padding_of(mask, shapes)
        proposed = self.proposals(memory, shapes, groups, padding)
        hidden, reference = self._decode(memory, shapes, proposed.boxes, groups, padding, last_only)
        logits = self.class_head(hidden)
        boxes = refine(self.box_head(hidden), reference)
        outputs: dict = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if not last_only:
            outputs["aux_outputs"] = [
                {"pred_logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], boxes[:-1], strict=True)
            ]
            outputs["enc_outputs"] = {"pred_logits": proposed.logits, "pred_boxes": proposed.boxes}
        return outputs

    def _decode(
        self,
        memory: Tensor,
        shapes: Shapes,
        start_boxes: Tensor,
        groups: int,
        padding: Padding | None,
        last_only: bool,
    ) -> tuple[Tensor, Tensor]:
        """Pair the ranked start boxes with the learned queries and run the decoder."""
        batch, count = len(memory), groups * self.num_queries
        learned = self.query_boxes[:count].to(start_boxes.dtype)
        started = start_boxes.shape[1]
        reference = refine(learned[:started], start_boxes.detach())
        if started < count:
            reference = torch.cat((reference, learned[started:].expand(batch, -1, -1)), dim=1)
        queries = self.query_features[:count].expand(batch, -1, -1).to(memory.dtype)
        return self.decoder(queries, reference, memory, shapes, groups, padding, last_only), reference
