"""The network: normalised images in, class logits and boxes out, and masks or keypoints where it has them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rfdetr.models.backbone import Backbone, Encoder
from rfdetr.models.backward import through_few
from rfdetr.models.boxes import refine
from rfdetr.models.heads import MLP
from rfdetr.models.keypoint_network import KeypointNetwork
from rfdetr.models.projector import Projector, to_memory
from rfdetr.models.segmentation import MaskHead
from rfdetr.models.transformer import Decoder, Proposals, Proposed, Shapes, by_image, padding_of


class Batch(Protocol):
    """Pictures with a mask that is True on their padding (`rfdetr.datasets.batch.NestedTensor`)."""

    def decompose(self) -> tuple[Tensor, Tensor | None]:
        """The two."""
        ...


class Detector(nn.Module):
    """RF-DETR.

    Args:
        num_queries: learned queries per group.
        groups: query groups trained side by side; evaluation uses the first alone.
        num_logits: class outputs, one more than there are classes.
        mask_head, keypoints: the parts that other tasks than detection have.
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
        mask_head: MaskHead | None = None,
        keypoints: KeypointNetwork | None = None,
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
        self.mask_head = mask_head
        self.keypoints = keypoints

    @property
    def backbone(self) -> tuple[Backbone]:
        """The encoder by its older path, `backbone[0].encoder`."""
        return (Backbone(self.encoder),)

    def reinitialize_detection_head(self, num_classes: int) -> None:
        """Give the class heads `num_classes` rows, one more than there are classes: old rows are cut or repeated."""
        from rfdetr.models.refit import resize_class_heads

        resize_class_heads(self, num_classes)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:  # pyrefly: ignore[bad-override]
        # Scripts give what they read out of a checkpoint file, which has the published names.
        from rfdetr.checkpoints.names import rename_published

        rename_published(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def export(self) -> None:
        """What older scripts call before they trace the network, which needs no more than evaluation mode."""
        self.eval()

    def forward(
        self,
        images: Tensor | Batch,
        mask: Tensor | None = None,
        *,
        last_only: bool = False,
        whole_masks: bool | None = None,
    ) -> dict:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of patch size x windows. Or a batch that brings
                its mask, as older scripts make it.
            mask: (B, H, W) bool, True on padding; None when no image is padded.
            last_only: leave out `aux_outputs` and `enc_outputs`, which only losses need.
            whole_masks: logits of masks instead of their factors; None gives them outside of training.

        Returns:
            `pred_logits` (B, Q, C), `pred_boxes` (B, Q, 4) as relative cxcywh, `pred_masks` (`MaskHead`) and
            `pred_keypoints` (`KeypointNetwork`) of models that have them, `aux_outputs` (a list of the same for the
            earlier layers) and `enc_outputs` (the same for the start boxes). In training mode Q counts the queries of
            all groups, group 0 first.
        """
        if not isinstance(images, Tensor):
            images, mask = images.decompose()
        groups = self.groups if self.training else 1
        encoded = self.encoder(images)
        maps = self.projector(encoded)
        shapes: Shapes = tuple((one.shape[-2], one.shape[-1]) for one in maps)
        memory = to_memory(maps)
        padding = None if mask is None or not mask.any() else padding_of(mask, shapes)
        proposed = self.proposals(memory, shapes, groups, padding)
        count = groups * self.num_queries
        reference = self._reference(proposed.boxes, count)
        queries = self.query_features[:count]
        follow, tokens = None, []
        if self.keypoints is not None:
            follow = self.keypoints.beside_decoder(encoded, queries, reference, shapes, padding, tokens)
        queries = queries.expand(images.shape[0], -1, -1).to(memory.dtype)
        hidden = self.decoder(queries, reference, memory, shapes, groups, padding, last_only, follow)
        logits = self.class_head(hidden)
        deltas = through_few(self.box_head, hidden.flatten(0, -2).unsqueeze(0))
        boxes = refine(deltas.view(*hidden.shape[:-1], 4), reference)
        layers: list[dict] = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        start = None if last_only else proposed
        if start is not None:
            layers.append({"pred_logits": start.logits, "pred_boxes": start.boxes})
        if self.mask_head is not None:
            features = None if start is None else by_image(start.features, len(images))
            whole = not self.training if whole_masks is None else whole_masks
            masks = self.mask_head(maps[0], images.shape[-2:], hidden, features, whole)
            for layer, one in zip(layers, masks, strict=True):
                layer["pred_masks"] = one
        if self.keypoints is not None:
            self._add_keypoints(self.keypoints, layers, tokens, reference, start)
        if last_only:
            return layers[0]
        *earlier, last, first = layers
        return {**last, "aux_outputs": earlier, "enc_outputs": first}

    def _reference(self, start_boxes: Tensor, count: int) -> Tensor:
        """Pair the ranked start boxes (B, k, 4) with the first `count` learned ones: (B, count, 4)."""
        learned = self.query_boxes[:count].to(start_boxes.dtype)
        started = start_boxes.shape[1]
        reference = refine(learned[:started], start_boxes.detach())
        if started < count:
            reference = torch.cat((reference, learned[started:].expand(start_boxes.shape[0], -1, -1)), dim=1)
        return reference

    @staticmethod
    def _add_keypoints(
        network: KeypointNetwork, layers: list[dict], tokens: list[Tensor], reference: Tensor, start: Proposed | None
    ) -> None:
        """Keypoints of the last layer alone, or of all and of the start boxes; they take part in the class logits."""
        if start is None:
            found = [network.predict(tokens[-1], reference)]
        else:
            found = [
                *network.predict(torch.stack(tokens), reference),
                network.predict_start(start.features, start.boxes),
            ]
        for layer, keypoints in zip(layers, found, strict=True):
            layer["pred_keypoints"] = keypoints
            layer["pred_logits"] = layer["pred_logits"] + network.class_share(keypoints, layer["pred_logits"].shape[-1])
