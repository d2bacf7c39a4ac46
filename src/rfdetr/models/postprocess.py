"""Raw outputs to detections: scores, labels, boxes in pixels, and masks or keypoints where the model has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.boxes import to_xyxy
from rfdetr.models.enlarge import cut_outs, paste
from rfdetr.models.keypoints import slots_of
from rfdetr.models.masks import logits_of

# Bits kept free below a score to order equal ones: room for a million query-class pairs.
_INDEX_BITS = 20
# Pixels of masks that a GPU enlarges at a time.
_CHUNK = 2**24
# Keeps logarithms finite.
_SMALLEST = 1e-12


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest probabilities of (B, Q, C) logits: scores (B, k), and index query * C + class (B, k).

    Equal scores, also those of saturated logits, are ordered by index, as a stable sort would.
    """
    scores = logits.float().sigmoid().flatten(1)
    index = torch.arange(scores.shape[1], device=scores.device)
    # The bits of a float that is not negative order like the float, so score and index fit into one sortable number.
    key = (scores.view(torch.int32).long() << _INDEX_BITS) + (2**_INDEX_BITS - 1 - index)
    best = key.topk(min(count, scores.shape[1]), dim=1).values
    chosen = 2**_INDEX_BITS - 1 - (best & (2**_INDEX_BITS - 1))
    return scores.gather(1, chosen), chosen


def scale_boxes(boxes_cxcywh: Tensor, target_sizes: Tensor) -> Tensor:
    """Relative boxes (B, K, 4) to corner pixels inside images of size (B, 2), given as (height, width)."""
    height, width = target_sizes.to(boxes_cxcywh.device).float().unbind(1)
    limit = torch.stack((width, height, width, height), dim=1).unsqueeze(1)
    boxes_px = to_xyxy(boxes_cxcywh.float()) * limit
    return torch.minimum(boxes_px.clamp(min=0), limit)


def log_spread(raw: Tensor, exists: Tensor) -> Tensor:
    """Logarithm of the mean trace of the covariance of keypoints (..., K, 8), weighted by their presence: (...,).

    Args:
        exists: (..., K) bool; without any keypoint the result is 0.
    """
    log_l11, l21, log_l22 = raw[..., 4:7].unbind(-1)
    cross = 2 * l21.abs().clamp(min=_SMALLEST).log() - 2 * log_l11 - 2 * log_l22
    trace = _logsumexp(torch.stack((-2 * log_l11, -2 * log_l22, cross), dim=-1))
    presence = raw[..., 2].sigmoid().clamp(min=_SMALLEST).log().masked_fill(~exists, -torch.inf)
    spread = _logsumexp(trace + presence) - _logsumexp(presence)
    return torch.where(exists.any(-1), spread, 0.0)


def _logsumexp(values: Tensor) -> Tensor:
    """`torch.logsumexp` over the last axis, in the same steps; OpenVINO computes the ONNX operator of it wrongly."""
    highest = values.amax(-1, keepdim=True)
    highest = torch.where(highest.abs() == torch.inf, 0.0, highest)
    return (values - highest).exp().sum(-1).log() + highest.squeeze(-1)


def enlarge(logits: Tensor, hw: tuple[int, int]) -> Tensor:
    """Mask logits (K, h, w) to masks of the picture's height and width, (K, 1, H, W) bool, on their device."""
    if logits.is_cuda:
        return _enlarge_whole(logits, hw)
    masks = torch.zeros((len(logits), 1, *hw), dtype=torch.bool)
    paste(masks.numpy()[:, 0], cut_outs(logits.float().numpy(), hw))
    return masks


def _enlarge_whole(logits: Tensor, hw: tuple[int, int]) -> Tensor:
    masks = logits.new_empty((len(logits), 1, *hw), dtype=torch.bool)
    for start in range(0, len(logits), count := max(1, _CHUNK // (hw[0] * hw[1]))):
        part = logits[start : start + count].unsqueeze(1).float()
        part = F.interpolate(part, hw, mode="bilinear", align_corners=False)
        torch.gt(part, 0.0, out=masks[start : start + count])
    return masks


class PostProcess(nn.Module):
    """Keep the best query-class pairs of each image; one query may give several.

    Args:
        num_select: pairs kept per image.
        schema: number of keypoints of each class.
        trace_alpha: how much uncertain keypoints lower the score; 0 leaves it alone.
    """

    def __init__(self, num_select: int = 300, schema: Sequence[int] = (), trace_alpha: float = 0.2) -> None:
        super().__init__()
        self.num_select, self.schema, self.trace_alpha = num_select, tuple(schema), trace_alpha

    @torch.no_grad()
    def forward(
        self,
        outputs: Mapping[str, Tensor],
        target_sizes: Tensor,
        threshold: float | None = None,
        *,
        enlarge_masks: bool = True,
    ) -> list[dict[str, Tensor]]:
        """Per image `scores` (K,), `labels` (K,) int64 and `boxes` (K, 4) xyxy in pixels, best first.

        `pred_masks` (`rfdetr.models.masks.Masks`) add `masks` (K, 1, H, W) bool. `pred_keypoints` (B, Q, slots, 8)
        add `keypoints` (K, widest, 3) as x, y in pixels and presence, `keypoint_precision_cholesky` (K, widest, 3), NaN
        where the class has no such keypoint, and change the scores of classes in the schema, not their order.

        Args:
            outputs: `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4) relative cxcywh.
            target_sizes: (B, 2) height and width of each image.
            threshold: of a model with masks, leave out the detections whose score is not above it.
            enlarge_masks: False gives `mask_logits` (K, h, w) in place of `masks`, for `rfdetr.models.enlarge`.
        """
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        scores, chosen = best_pairs(logits, self.num_select)
        query = torch.div(chosen, logits.shape[2], rounding_mode="floor")
        boxes_px = scale_boxes(boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4)), target_sizes)
        labels = chosen % logits.shape[2]
        found = {"scores": scores, "labels": labels, "boxes": boxes_px}
        if "pred_keypoints" in outputs:
            found |= self.keypoints(outputs["pred_keypoints"].float(), query, scores, labels, target_sizes)
        images = [dict(zip(found, one, strict=True)) for one in zip(*found.values(), strict=True)]
        if "pred_masks" not in outputs:
            return images
        sizes = target_sizes.tolist()
        for number, (one, chosen_query, hw) in enumerate(zip(images, query, sizes, strict=True)):
            if threshold is not None:
                keep = one["scores"] > threshold
                chosen_query = chosen_query[keep]
                one.update({name: value[keep] for name, value in one.items()})
            logits = logits_of(outputs["pred_masks"], torch.full_like(chosen_query, number), chosen_query)
            one |= {"masks": enlarge(logits, tuple(hw))} if enlarge_masks else {"mask_logits": logits}
        return images

    def keypoints(
        self, predicted: Tensor, query: Tensor, scores: Tensor, labels: Tensor, target_sizes: Tensor
    ) -> dict[str, Tensor]:
        """Keypoints, their precision and the new scores of detections (B, K)."""
        slots, exists = slots_of(labels, self.schema)
        raw = predicted.gather(1, query[..., None, None].expand(-1, -1, *predicted.shape[2:]))
        raw = raw.gather(2, slots.unsqueeze(-1).expand(-1, -1, -1, predicted.shape[3]))
        size = target_sizes.to(raw).flip(-1)[:, None, None]
        points = torch.cat((raw[..., :2] * size, raw[..., 2:3].sigmoid()), dim=-1)
        if self.trace_alpha > 0:
            fused = (scores.log() - self.trace_alpha * log_spread(raw, exists)).sigmoid().clamp(max=1 - 2**-24)
            scores = torch.where(labels < len(self.schema), fused, scores)
        return {
            "scores": scores,
            "keypoints": torch.where(exists.unsqueeze(-1), points, 0.0),
            "keypoint_precision_cholesky": torch.where(exists.unsqueeze(-1), raw[..., 4:7], torch.nan),
        }
