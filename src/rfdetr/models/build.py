"""A network, its losses and its results from the configuration, which no other file of `models` reads."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from rfdetr.config import ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.models.attention import DeformableAttention
from rfdetr.models.backbone import Block, Encoder
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.models.detector import Detector
from rfdetr.models.keypoint_network import KeypointLayer, KeypointNetwork, schema_masks
from rfdetr.models.keypoints import KeypointTerms
from rfdetr.models.masks import MaskTerms
from rfdetr.models.postprocess import PostProcess
from rfdetr.models.projector import Projector
from rfdetr.models.segmentation import MaskHead
from rfdetr.models.transformer import Decoder, DecoderLayer, Proposals
from rfdetr.variants import ENCODERS


def build_model(config: ModelConfig) -> Detector:
    """The network of a configuration on the meta device: shapes without values.

    Fill it with `load_state_dict(..., assign=True)`, or with `initialise` for random weights.
    """
    size = ENCODERS[config.encoder]
    dim, levels, taps = config.hidden_dim, tuple(config.projector_scale), len(config.out_feature_indexes)
    layers, heads, points = config.dec_layers, (config.sa_nheads, config.ca_nheads), config.dec_n_points
    with torch.device("meta"):
        encoder = Encoder(
            dim=size.dim,
            heads=size.heads,
            depth=size.depth,
            patch_size=config.patch_size,
            num_windows=config.num_windows,
            position_side=config.positional_encoding_size,
            taps=tuple(config.out_feature_indexes),
            channels=config.num_channels,
            checkpointing=config.gradient_checkpointing,
        )
        masks = keypoints = None
        if config.segmentation_head:
            masks = MaskHead(dim, layers, config.mask_downsample_ratio)
        if config.use_grouppose_keypoints:
            projector, schema = Projector(size.dim, taps, dim, levels), config.num_keypoints_per_class
            keypoints = KeypointNetwork(projector, dim, config.group_detr, layers, *heads, points, schema)
        return Detector(
            encoder,
            Projector(size.dim, taps, dim, levels),
            Proposals(dim, config.group_detr, config.num_queries, config.num_classes + 1),
            Decoder(dim, layers, *heads, len(levels), points),
            dim=dim,
            num_queries=config.num_queries,
            groups=config.group_detr,
            num_logits=config.num_classes + 1,
            mask_head=masks,
            keypoints=keypoints,
        ).eval()


def build_criterion(model: ModelConfig, train: TrainConfig) -> Criterion:
    """The losses of a run; an option of the model that the run states too is the run's."""
    masks = keypoints = None
    weights: dict[str, float] = {}
    if isinstance(train, SegmentationTrainConfig):
        ce, dice = train.mask_ce_loss_coef, train.mask_dice_loss_coef
        masks = MaskTerms(ce, dice, train.mask_point_sample_ratio)
        weights = {"loss_mask_ce": ce, "loss_mask_dice": dice}
    if model.use_grouppose_keypoints:
        coefs = {n: getattr(train, f"keypoint_{n}_loss_coef") for n in ("l1", "findable", "visible", "nll")}
        keypoints = KeypointTerms(tuple(model.num_keypoints_per_class), **coefs)
        weights = {f"loss_keypoints_{name}": coef for name, coef in coefs.items()}
    ia_bce = model.ia_bce_loss if train.ia_bce_loss is None else train.ia_bce_loss
    return Criterion(
        loss_weights(model.dec_layers, train.cls_loss_coef, **weights),
        model.group_detr,
        "ia_bce" if ia_bce else "focal",
        masks=masks,
        keypoints=keypoints,
    )


def build_postprocess(model: ModelConfig, num_select: int | None = None) -> PostProcess:
    """What turns the network's outputs into detections."""
    return PostProcess(num_select or model.num_select, model.num_keypoints_per_class, model.postprocess_trace_alpha)


@torch.no_grad()
def initialise(model: Detector) -> Detector:
    """Give every tensor of a network on the meta device its start value, on the CPU."""
    model.to_empty(device="cpu")
    _initialise_encoder(model.encoder)
    _reset((*model.projector.modules(), model.class_head, *model.box_head.modules()))
    _initialise_decoder(model.decoder)
    nn.init.constant_(model.class_head.bias, -math.log(99))
    for zero in model.box_head.layers[-1].parameters():
        nn.init.zeros_(zero)
    _initialise_proposals(model)
    nn.init.zeros_(model.query_boxes)
    nn.init.normal_(model.query_features)
    if model.mask_head is not None:
        _reset(model.mask_head.modules())
        nn.init.zeros_(model.mask_head.bias)
    if model.keypoints is not None:
        _initialise_keypoints(model.keypoints)
    return model


def _reset(modules: Iterable[nn.Module]) -> None:
    """PyTorch's own start values."""
    for module in modules:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm):
            module.reset_parameters()


def _initialise_encoder(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _truncated_normal(module.weight)
            nn.init.zeros_(module.bias)  # pyrefly: ignore[bad-argument-type]
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, Block):
            nn.init.ones_(module.scale1)
            nn.init.ones_(module.scale2)
    _truncated_normal(encoder.positions)
    _truncated_normal(encoder.class_token)
    nn.init.zeros_(encoder.mask_token)


def _truncated_normal(tensor: torch.Tensor) -> None:
    # A cut at 100 standard deviations: drawing normally and clamping says the same and costs a tenth.
    tensor.normal_(std=0.02).clamp_(-2, 2)


def _initialise_decoder(decoder: Decoder | KeypointNetwork) -> None:
    """Every matrix of a decoder; and of its layers, or those beside them, what depends on their place."""
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer | KeypointLayer)]
    for layer in layers:
        nn.init.zeros_(layer.self_attention.qkv.bias)
        nn.init.zeros_(layer.self_attention.output.bias)
        # All layers start as copies, so the biases that are drawn are the same in each.
        layer.mlp_in.bias.copy_(layers[0].mlp_in.bias)
        layer.mlp_out.bias.copy_(layers[0].mlp_out.bias)
        _initialise_deformable(layer.cross_attention)


def _initialise_deformable(attention: DeformableAttention) -> None:
    """Heads start by looking in evenly spread directions, farther with every point (arXiv 2010.04159)."""
    for zero in (attention.offsets.weight, attention.weights.weight, attention.weights.bias):
        nn.init.zeros_(zero)
    nn.init.zeros_(attention.value.bias)
    nn.init.zeros_(attention.output.bias)
    angle = torch.arange(attention.heads) * (2 * math.pi / attention.heads)
    direction = torch.stack((angle.cos(), angle.sin()), -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, attention.points + 1).view(1, 1, -1, 1)
    spread = direction.view(-1, 1, 1, 2) * steps
    attention.offsets.bias.copy_(spread.expand(-1, attention.levels, -1, -1).reshape(-1))


def _initialise_keypoints(network: KeypointNetwork) -> None:
    _initialise_decoder(network)
    _reset((*network.projector.modules(), *network.head.modules()))
    for table in (network.position, network.start.tokens, network.box_start.tokens):
        nn.init.xavier_uniform_(table)
    for zero in (
        *network.head.layers[-1].parameters(),
        *(s.modulation_out.bias for s in (network.start, network.box_start)),
    ):
        nn.init.zeros_(zero)
    for layer in network.layers:
        nn.init.constant_(layer.instance_scale, 1e-6)  # pyrefly: ignore[bad-argument-type]
    _copy_to_groups(network.head, network.box_heads)
    for buffer, mask in zip((network.active, network.blocked), schema_masks(network.schema), strict=True):
        buffer.copy_(mask)


def _copy_to_groups(single: nn.Module, grouped: nn.Module) -> None:
    """Every group starts with a copy of a head."""
    for copies, value in zip(grouped.parameters(), single.parameters(), strict=True):
        copies.copy_(value.expand_as(copies))


def _initialise_proposals(model: Detector) -> None:
    proposals = model.proposals
    proposals.embed.reset_parameters()
    for matrix in proposals.embed.weight:
        nn.init.xavier_uniform_(matrix)
    nn.init.ones_(proposals.norm.weight)
    nn.init.zeros_(proposals.norm.bias)
    _copy_to_groups(model.class_head, proposals.classes)
    _copy_to_groups(model.box_head, proposals.boxes)
