"""The keypoint part of the network: tokens beside every query, with a memory and layers of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.attention import DeformableAttention, QueryAttention
from rfdetr.models.heads import MLP, GroupMLP
from rfdetr.models.projector import Projector, to_memory
from rfdetr.models.transformer import Padding, Shapes, by_image

# x, y, findable and visible logit, log l11, l21, log l22 of the precision's Cholesky factor, share in the class logit.
CHANNELS = 8


def schema_masks(schema: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which slots hold a keypoint, (classes, widest), and which tokens never see each other, (1 + K, 1 + K).

    Token 0 is the instance, which sees all keypoints; keypoints see those of their own class.
    """
    counts = torch.tensor(schema)
    active = torch.arange(max(schema)) < counts.unsqueeze(1)
    owner = torch.tensor([0, *(number + 1 for number, count in enumerate(schema) for _ in range(count))])
    return active, (owner.unsqueeze(1) != owner) & (owner.unsqueeze(1) > 0) & (owner > 0)


class TokenStart(nn.Module):
    """Learned tokens, scaled, shifted and gated by the features of their query (adaLN, arXiv 2212.09748)."""

    def __init__(self, dim: int, keypoints: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(keypoints, dim))
        self.modulation_in = nn.Linear(dim, dim)
        self.modulation_out = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., D) -> tokens (..., K, D)."""
        modulation = self.modulation_out(F.gelu(self.modulation_in(features)))
        scale, shift, gate = modulation.unsqueeze(-2).chunk(3, dim=-1)
        normed = F.layer_norm(self.tokens, self.tokens.shape[-1:])
        return self.output((1 + scale) * normed + shift) * gate + self.tokens


class KeypointLayer(nn.Module):
    """What follows a decoder layer: a query and its tokens look at each other, then the tokens at the memory."""

    def __init__(self, dim: int, self_heads: int, cross_heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.self_attention = QueryAttention(dim, self_heads)
        self.instance_scale = nn.Parameter(torch.zeros(1))
        self.instance_norm = nn.LayerNorm(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, cross_heads, levels, points)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, 4 * dim)
        self.mlp_out = nn.Linear(4 * dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, tokens: Tensor, token_position: Tensor, allowed: Tensor | None, read: Callable
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, Q, D) and tokens (B, Q, K, D), whose position is (K, D); `read` asks the memory for tokens."""
        joined = torch.cat((queries.unsqueeze(2), tokens), dim=2)
        rows = joined.flatten(0, 1)
        mixed = self.self_attention(rows, rows + F.pad(token_position, (0, 0, 1, 0)), allowed).view_as(joined)
        queries = self.instance_norm(queries + self.instance_scale * mixed[:, :, 0])
        tokens = self.norm1(tokens + mixed[:, :, 1:])
        tokens = self.norm2(tokens + read(self.cross_attention, tokens))
        return queries, self.norm3(tokens + self.mlp_out(F.relu(self.mlp_in(tokens))))


class KeypointNetwork(nn.Module):
    """Keypoints of every query.

    Args:
        projector: fuses the encoder's maps into the memory that only keypoints read.
        schema: number of keypoints of each class; outputs have max(schema) slots per class, class by class.
    """

    active: Tensor
    blocked: Tensor

    def __init__(
        self,
        projector: Projector,
        dim: int,
        groups: int,
        layers: int,
        self_heads: int,
        cross_heads: int,
        points: int,
        schema: Sequence[int],
    ) -> None:
        super().__init__()
        self.schema, levels = tuple(schema), len(projector.levels)
        self.projector = projector
        self.start, self.box_start = TokenStart(dim, sum(schema)), TokenStart(dim, sum(schema))
        self.position = nn.Parameter(torch.zeros(sum(schema), dim))
        self.layers = nn.ModuleList(KeypointLayer(dim, self_heads, cross_heads, levels, points) for _ in range(layers))
        self.head = MLP(dim, dim, dim, CHANNELS)
        self.box_heads = GroupMLP(groups, dim, dim, dim, CHANNELS)
        # In every file; they follow from the schema.
        for name, mask in zip(("active", "blocked"), schema_masks(schema), strict=True):
            self.register_buffer(name, mask)

    def beside_decoder(
        self,
        maps: list[Tensor],
        query_features: Tensor,
        reference: Tensor,
        shapes: Shapes,
        padding: Padding | None,
        kept: list[Tensor],
    ) -> Callable[[int, Tensor, Tensor], Tensor]:
        """What `Decoder.forward` calls after each of its layers; the tokens (B, Q, K, D) of each are added to `kept`.

        Args:
            maps: the encoder's.
            query_features: (Q, D), from which the tokens start.
            reference: boxes of the queries, (B, Q, 4).
        """
        memory = to_memory(self.projector(maps))
        mask, ratios = (None, None) if padding is None else (padding.mask, padding.ratios)
        boxes = reference.repeat_interleave(len(self.position), dim=1)
        allowed = ~self.blocked if len(self.schema) > 1 else None
        tokens = self.start(query_features).to(memory.dtype).expand(memory.shape[0], -1, -1, -1)

        def follow(number: int, queries: Tensor, position: Tensor) -> Tensor:
            def read(attention: DeformableAttention, tokens: Tensor) -> Tensor:
                asking = (tokens + position.unsqueeze(2)).flatten(1, 2)
                return attention(asking, boxes, memory, shapes, mask, ratios).view_as(tokens)

            queries, after = self.layers[number](queries, kept[-1] if kept else tokens, self.position, allowed, read)
            kept.append(after)
            return queries

        return follow

    def predict(self, tokens: Tensor, boxes_cxcywh: Tensor) -> Tensor:
        """Tokens (..., Q, K, D) of a decoder layer and their reference boxes (B, Q, 4) -> (..., Q, slots, 8)."""
        return self._placed(self.head(tokens), boxes_cxcywh)

    def predict_start(self, features: Tensor, boxes_cxcywh: Tensor) -> Tensor:
        """The same for start boxes (B, G*Q, 4) with features (G, B*Q, D)."""
        groups, tokens = len(features), self.box_start(features)
        found = self.box_heads(tokens.flatten(1, 2), groups).view(*features.shape[:2], -1)
        return self._placed(by_image(found, len(boxes_cxcywh)).unflatten(-1, (-1, CHANNELS)), boxes_cxcywh)

    def class_share(self, keypoints: Tensor, num_logits: int) -> Tensor:
        """What keypoints (..., slots, 8) add to the class logits (..., num_logits)."""
        share = keypoints[..., 7].unflatten(-1, (len(self.schema), -1)).sum(-1)
        return F.pad(share, (0, num_logits - len(self.schema)))

    def _placed(self, raw: Tensor, boxes_cxcywh: Tensor) -> Tensor:
        """Place outputs (..., K, 8) in their boxes and in the slots of their class; empty slots are zero."""
        raw = raw.nan_to_num(0.0, 0.0, 0.0)
        boxes = boxes_cxcywh.unsqueeze(-2)
        placed = torch.cat((raw[..., :2] * boxes[..., 2:] + boxes[..., :2], raw[..., 2:]), dim=-1)
        widest = max(self.schema)
        by_class = placed.split(self.schema, dim=-2)
        return torch.cat([F.pad(one, (0, 0, 0, widest - one.shape[-2])) for one in by_class], dim=-2)
