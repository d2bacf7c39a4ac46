"""Published tensor names, which every file carries, and ours: one table read in both directions.

A row renames everything below a prefix. `{i}`, `{j}` are numbers that stand in both names. `{g}` numbers the query
groups: their tensors are one stacked tensor inside. `[query,key,value]` are three tensors that are one
concatenated tensor inside.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import torch
from torch import Tensor

_ENCODER = "backbone.0.encoder.encoder"
_BLOCK = f"{_ENCODER}.encoder.layer.{{i}}"
_DECODER = "transformer.decoder.layers.{i}"
_MASKS = "segmentation_head"


def _attention(published: str, internal: str) -> tuple[tuple[str, str], ...]:
    """Rows of a self attention."""
    return (f"{published}.in_proj_", f"{internal}.qkv."), (f"{published}.out_proj.", f"{internal}.output.")


def _deformable(published: str, internal: str) -> tuple[tuple[str, str], ...]:
    """Rows of a deformable attention."""
    parts = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value"}
    parts["output_proj"] = "output"
    return tuple((f"{published}.{theirs}.", f"{internal}.{ours}.") for theirs, ours in parts.items())


def _projector(published: str, internal: str) -> tuple[tuple[str, str], ...]:
    """Rows of a projector."""
    resample, level = f"{published}.stages_sampling.{{i}}.{{j}}.0", f"{published}.stages.{{i}}.0"
    fuse = f"{internal}.levels.{{i}}.fuse"
    return (
        (f"{resample}.bn.", f"{internal}.levels.{{i}}.resample.{{j}}.norm."),
        (f"{resample}.", f"{internal}.levels.{{i}}.resample.{{j}}."),
        (f"{level}.cv1.conv.", f"{fuse}.enter.conv."),
        (f"{level}.cv1.bn.", f"{fuse}.enter.norm."),
        (f"{level}.cv2.conv.", f"{fuse}.leave.conv."),
        (f"{level}.cv2.bn.", f"{fuse}.leave.norm."),
        (f"{level}.m.{{j}}.cv1.conv.", f"{fuse}.bottlenecks.{{j}}.first.conv."),
        (f"{level}.m.{{j}}.cv1.bn.", f"{fuse}.bottlenecks.{{j}}.first.norm."),
        (f"{level}.m.{{j}}.cv2.conv.", f"{fuse}.bottlenecks.{{j}}.second.conv."),
        (f"{level}.m.{{j}}.cv2.bn.", f"{fuse}.bottlenecks.{{j}}.second.norm."),
        (f"{published}.stages.{{i}}.1.", f"{internal}.levels.{{i}}.norm."),
    )


def _token_start(published: str, internal: str) -> tuple[tuple[str, str], ...]:
    """Rows of what keypoint tokens start from."""
    return (
        (f"{published}.queries", f"{internal}.tokens"),
        (f"{published}.adaLN_modulation.0.", f"{internal}.modulation_in."),
        (f"{published}.adaLN_modulation.2.", f"{internal}.modulation_out."),
        (f"{published}.out_proj.", f"{internal}.output."),
    )


# A buffer of the published network that says which keypoints exist; it is empty without a keypoint head.
KEYPOINT_MASK = "_kp_active_mask"

TABLE = (
    (f"{_ENCODER}.embeddings.cls_token", "encoder.class_token"),
    (f"{_ENCODER}.embeddings.mask_token", "encoder.mask_token"),
    (f"{_ENCODER}.embeddings.position_embeddings", "encoder.positions"),
    (f"{_ENCODER}.embeddings.patch_embeddings.projection.", "encoder.patches."),
    (f"{_BLOCK}.norm1.", "encoder.blocks.{i}.norm1."),
    (f"{_BLOCK}.attention.attention.[query,key,value].", "encoder.blocks.{i}.attention.qkv."),
    (f"{_BLOCK}.attention.output.dense.", "encoder.blocks.{i}.attention.output."),
    (f"{_BLOCK}.layer_scale1.lambda1", "encoder.blocks.{i}.scale1"),
    (f"{_BLOCK}.norm2.", "encoder.blocks.{i}.norm2."),
    (f"{_BLOCK}.mlp.fc1.", "encoder.blocks.{i}.mlp_in."),
    (f"{_BLOCK}.mlp.fc2.", "encoder.blocks.{i}.mlp_out."),
    (f"{_BLOCK}.layer_scale2.lambda1", "encoder.blocks.{i}.scale2"),
    (f"{_ENCODER}.layernorm.", "encoder.norm."),
    *_projector("backbone.0.projector", "projector"),
    ("transformer.enc_output.{g}.", "proposals.embed."),
    ("transformer.enc_output_norm.{g}.", "proposals.norm."),
    ("transformer.enc_out_class_embed.{g}.", "proposals.classes."),
    ("transformer.enc_out_bbox_embed.{g}.layers.{i}.", "proposals.boxes.layers.{i}."),
    *_attention(f"{_DECODER}.self_attn", "decoder.layers.{i}.self_attention"),
    (f"{_DECODER}.norm1.", "decoder.layers.{i}.norm1."),
    *_deformable(f"{_DECODER}.cross_attn", "decoder.layers.{i}.cross_attention"),
    (f"{_DECODER}.norm2.", "decoder.layers.{i}.norm2."),
    (f"{_DECODER}.linear1.", "decoder.layers.{i}.mlp_in."),
    (f"{_DECODER}.linear2.", "decoder.layers.{i}.mlp_out."),
    (f"{_DECODER}.norm3.", "decoder.layers.{i}.norm3."),
    ("transformer.decoder.ref_point_head.", "decoder.position."),
    ("transformer.decoder.norm.", "decoder.norm."),
    ("class_embed.", "class_head."),
    ("bbox_embed.", "box_head."),
    ("refpoint_embed.weight", "query_boxes"),
    ("query_feat.weight", "query_features"),
    (f"{_MASKS}.blocks.{{i}}.dwconv.", "mask_head.blocks.{i}.conv."),
    (f"{_MASKS}.blocks.{{i}}.norm.", "mask_head.blocks.{i}.norm."),
    (f"{_MASKS}.blocks.{{i}}.pwconv1.", "mask_head.blocks.{i}.mix."),
    (f"{_MASKS}.spatial_features_proj.", "mask_head.map_output."),
    (f"{_MASKS}.query_features_block.norm_in.", "mask_head.query_norm."),
    (f"{_MASKS}.query_features_block.layers.0.", "mask_head.query_in."),
    (f"{_MASKS}.query_features_block.layers.2.", "mask_head.query_out."),
    (f"{_MASKS}.query_features_proj.", "mask_head.query_output."),
    (f"{_MASKS}.bias", "mask_head.bias"),
    *_projector("backbone.0.cross_attn_projector", "keypoints.projector"),
    *_token_start("transformer.keypoint_query_initializer", "keypoints.start"),
    *_token_start("transformer.keypoint_query_initializer_enc", "keypoints.box_start"),
    *_attention(f"{_DECODER}.kp_inst_self_attn", "keypoints.layers.{i}.self_attention"),
    (f"{_DECODER}.instance_kp_layer_scale", "keypoints.layers.{i}.instance_scale"),
    (f"{_DECODER}.kp_inst_norm.", "keypoints.layers.{i}.instance_norm."),
    (f"{_DECODER}.kp_norm.", "keypoints.layers.{i}.norm1."),
    *_deformable(f"{_DECODER}.kp_cross_attn", "keypoints.layers.{i}.cross_attention"),
    (f"{_DECODER}.kp_cross_attn_norm.", "keypoints.layers.{i}.norm2."),
    (f"{_DECODER}.kp_linear1.", "keypoints.layers.{i}.mlp_in."),
    (f"{_DECODER}.kp_linear3.", "keypoints.layers.{i}.mlp_out."),
    (f"{_DECODER}.kp_norm5.", "keypoints.layers.{i}.norm3."),
    ("transformer.decoder.keypoint_pos_embed", "keypoints.position"),
    ("transformer.enc_out_keypoint_embed.{g}.layers.{i}.", "keypoints.box_heads.layers.{i}."),
    ("keypoint_embed.", "keypoints.head."),
    (KEYPOINT_MASK, "keypoints.active"),
    ("transformer.decoder.keypoint_class_mask", "keypoints.blocked"),
)

_CHOICE = re.compile(r"\[([\w,]+)\]")


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression with groups i, j, g, part and rest."""
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    text = re.sub(r"\\\[([\w,]+)\\\]", lambda found: f"(?P<part>{found[1].replace(',', '|')})", text)
    text = re.sub(r"\{([ijg])\}", r"(?P<\1>\\d+)", text)
    return re.compile(f"^{text}(?P<rest>.*)$")


_TO_INTERNAL = [(_pattern(published), published, internal) for published, internal in TABLE]
_TO_PUBLISHED = [(_pattern(internal), published) for published, internal in TABLE]


@functools.lru_cache(maxsize=8192)
def internal_name(published: str) -> tuple[str, int | None, bool] | None:
    """Our name of a published tensor, its position in a joined tensor, and whether the parts are stacked.

    None for a name the table does not know.
    """
    for pattern, template, internal in _TO_INTERNAL:
        found = pattern.match(published)
        if found:
            numbers = found.groupdict()
            name = internal.format(**numbers) + numbers["rest"]
            if "g" in numbers:
                return name, int(numbers["g"]), True
            if choice := _CHOICE.search(template):
                return name, choice[1].split(",").index(numbers["part"]), False
            return name, None, False
    return None


@functools.lru_cache(maxsize=8192)
def published_names(internal: str, groups: int = 1) -> tuple[str, ...]:
    """The published names of one of our tensors: one, or one per joined part (`groups` of them when stacked)."""
    for pattern, template in _TO_PUBLISHED:
        found = pattern.match(internal)
        if found:
            numbers = found.groupdict()
            choice = _CHOICE.search(template)
            parts = choice[1].split(",") if choice else [""]
            texts = [_CHOICE.sub(part, template) for part in parts]
            count = groups if "{g}" in template else 1
            return tuple(t.format(g=g, **numbers) + numbers["rest"] for g in range(count) for t in texts)
    raise KeyError(f"{internal} has no row in the table of published names")


def to_internal(published: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and join published tensors; also the names that the table does not know.

    Raises:
        ValueError: a tensor that is joined with others is missing; all such are named.
    """
    plain: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    stacked: set[str] = set()
    unknown = []
    for name, tensor in published.items():
        row = internal_name(name)
        if row is None:
            unknown.append(name)
            continue
        if name == KEYPOINT_MASK and not tensor.numel():
            continue
        ours, position, stack = row
        if position is None:
            plain[ours] = tensor
        else:
            parts.setdefault(ours, {})[position] = tensor
            if stack:
                stacked.add(ours)
    if missing := _missing_parts(parts):
        raise ValueError(", ".join(f"{name} is missing" for name in missing))
    for ours, found in parts.items():
        ordered = [found[position] for position in sorted(found)]
        plain[ours] = torch.stack(ordered) if ours in stacked else torch.cat(ordered)
    return plain, unknown


def _missing_parts(parts: Mapping[str, Mapping[int, Tensor]]) -> list[str]:
    """Published names of the tensors without which those of the same joined tensor are of no use."""
    groups = max((1 + max(found) for ours, found in parts.items() if _is_stacked(ours)), default=1)
    return [
        name
        for ours, found in parts.items()
        for position, name in enumerate(published_names(ours, groups))
        if position not in found
    ]


def to_published(internal: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split and rename our tensors; the result shares their memory."""
    published = {KEYPOINT_MASK: torch.zeros(0, 0, dtype=torch.bool)}
    for name, tensor in internal.items():
        names = published_names(name, len(tensor) if tensor.dim() else 1)
        if len(names) == 1 and not _is_stacked(name):
            published[names[0]] = tensor
        elif _is_stacked(name):
            published.update(zip(names, tensor.unbind(0), strict=True))
        else:
            published.update(zip(names, tensor.chunk(len(names)), strict=True))
    return published


def _is_stacked(internal: str) -> bool:
    row = internal_name(published_names(internal)[0])
    return row is not None and row[2]


def rename_published(state: dict[str, Tensor], prefix: str) -> None:
    """Give tensors below a prefix our names, in place, if they have the published ones."""
    if not any(name.startswith(f"{prefix}backbone.0.") for name in state):
        return
    internal, unknown = to_internal({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    kept = {name: state[prefix + name] for name in unknown}
    state.clear()
    state.update({prefix + name: tensor for name, tensor in {**internal, **kept}.items()})
