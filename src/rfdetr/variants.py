"""The sizes of RF-DETR: one row per published variant, one row per encoder. Every other number follows from these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSize:
    """Width, attention heads and depth of one DINOv2 encoder."""

    dim: int
    heads: int
    depth: int


ENCODERS = {
    # the two of the published variants
    "dinov2_windowed_small": EncoderSize(384, 6, 12),
    "dinov2_windowed_base": EncoderSize(768, 12, 12),
    # small enough to learn from scratch on two cores: demo, tests, experiments
    "dinov2_windowed_tiny": EncoderSize(192, 3, 6),
}


# What a keypoint model has; its schema is one class of people with the keypoints of COCO.
_KEYPOINTS = {
    "use_grouppose_keypoints": True,
    "dual_projector": True,
    "dual_projector_kp_only": True,
    "num_keypoints_per_class": [17],
}


TASKS = ("detect", "segment", "keypoints")


@dataclass(frozen=True)
class Variant:
    """One published size. `queries` is also the number of detections returned; `weights` the published file."""

    task: str
    size: str
    resolution: int
    patch_size: int
    num_windows: int
    dec_layers: int
    queries: int
    weights: str | None
    encoder: str = "dinov2_windowed_small"
    taps: tuple[int, ...] = (3, 6, 9, 12)
    levels: tuple[str, ...] = ("P4",)
    hidden_dim: int = 256
    heads: tuple[int, int] = (8, 16)
    points: int = 2
    position_side: int | None = None

    def config_defaults(self) -> dict[str, object]:
        """The fields of `ModelConfig` that this row decides."""
        return {
            "encoder": self.encoder,
            "resolution": self.resolution,
            "patch_size": self.patch_size,
            "num_windows": self.num_windows,
            "positional_encoding_size": self.position_side or self.resolution // self.patch_size,
            "out_feature_indexes": list(self.taps),
            "projector_scale": list(self.levels),
            "hidden_dim": self.hidden_dim,
            "sa_nheads": self.heads[0],
            "ca_nheads": self.heads[1],
            "dec_n_points": self.points,
            "dec_layers": self.dec_layers,
            "num_queries": self.queries,
            "num_select": self.queries,
            "segmentation_head": self.task == "segment",
            **(_KEYPOINTS if self.task == "keypoints" else {}),
            "pretrain_weights": self.weights,
        }


_OLD_BASE = {"taps": (2, 5, 8, 11), "position_side": 37}
_WIDE = {"encoder": "dinov2_windowed_base", "points": 4}

# fmt: off
VARIANTS = {
    #                            task      size             res  patch win dec queries weights
    "nano":             Variant("detect", "rfdetr-nano",    384, 16, 2, 2, 300, "rf-detr-nano.pth"),
    "small":            Variant("detect", "rfdetr-small",   512, 16, 2, 3, 300, "rf-detr-small.pth"),
    "medium":           Variant("detect", "rfdetr-medium",  576, 16, 2, 4, 300, "rf-detr-medium.pth"),
    "base":             Variant("detect", "rfdetr-base",    560, 14, 4, 3, 300, "rf-detr-base.pth", **_OLD_BASE),
    "large":            Variant("detect", "rfdetr-large",   704, 16, 2, 4, 300, "rf-detr-large-2026.pth"),
    "large-deprecated": Variant("detect", "rfdetr-large",   560, 14, 4, 3, 300, "rf-detr-large.pth",
                                levels=("P3", "P5"), hidden_dim=384, heads=(12, 24), **_OLD_BASE, **_WIDE),
    "xlarge":           Variant("detect", "rfdetr-xlarge",  700, 20, 1, 5, 300, None,
                                hidden_dim=512, heads=(16, 32), **_WIDE),
    "2xlarge":          Variant("detect", "rfdetr-2xlarge", 880, 20, 2, 5, 300, None,
                                hidden_dim=512, heads=(16, 32), **_WIDE),
    "seg-preview": Variant("segment", "rfdetr-seg-preview", 432, 12, 2, 4, 200, "rf-detr-seg-preview.pt"),
    "seg-nano":    Variant("segment", "rfdetr-seg-nano",    312, 12, 1, 4, 100, "rf-detr-seg-nano.pt"),
    "seg-small":   Variant("segment", "rfdetr-seg-small",   384, 12, 2, 4, 100, "rf-detr-seg-small.pt"),
    "seg-medium":  Variant("segment", "rfdetr-seg-medium",  432, 12, 2, 5, 200, "rf-detr-seg-medium.pt"),
    "seg-large":   Variant("segment", "rfdetr-seg-large",   504, 12, 2, 5, 200, "rf-detr-seg-large.pt"),
    "seg-xlarge":  Variant("segment", "rfdetr-seg-xlarge",  624, 12, 2, 6, 300, "rf-detr-seg-xlarge.pt"),
    "seg-2xlarge": Variant("segment", "rfdetr-seg-2xlarge", 768, 12, 2, 6, 300, "rf-detr-seg-xxlarge.pt"),
    "keypoint-preview": Variant("keypoints", "rfdetr-keypoint-preview", 576, 12, 2, 4, 100,
                                "rf-detr-keypoint-preview-xlarge.pth"),
}
# fmt: on
