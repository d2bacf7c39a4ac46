"""What other programs do with this package: the very calls that each of them makes."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import supervision as sv
import torch
from PIL import Image
from tests.small_world import shrink
from tests.tiny import MODEL, TASK_MODEL, TRAINING, decided_model, tiny_data, tiny_model, tiny_segmenter

import rfdetr
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint
from rfdetr.config import ModelConfig, PathLikeStr
from rfdetr.detr import RFDETR
from rfdetr.variants import VARIANTS

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
# What a network is trained with in every file, but for keypoints: transformers renames these by regular expressions,
# and Roboflow's inference loads them strictly into a network of its own.
NAMES = r"""
_kp_active_mask
backbone\.0\.encoder\.encoder\.embeddings\.(cls_token|mask_token|position_embeddings)
backbone\.0\.encoder\.encoder\.embeddings\.patch_embeddings\.projection\.(weight|bias)
backbone\.0\.encoder\.encoder\.encoder\.layer\.\d+\.norm[12]\.(weight|bias)
backbone\.0\.encoder\.encoder\.encoder\.layer\.\d+\.attention\.attention\.(query|key|value)\.(weight|bias)
backbone\.0\.encoder\.encoder\.encoder\.layer\.\d+\.attention\.output\.dense\.(weight|bias)
backbone\.0\.encoder\.encoder\.encoder\.layer\.\d+\.layer_scale[12]\.lambda1
backbone\.0\.encoder\.encoder\.encoder\.layer\.\d+\.mlp\.fc[12]\.(weight|bias)
backbone\.0\.encoder\.encoder\.layernorm\.(weight|bias)
backbone\.0\.projector\.stages\.0\.0\.cv[12]\.conv\.weight
backbone\.0\.projector\.stages\.0\.0\.cv[12]\.bn\.(weight|bias)
backbone\.0\.projector\.stages\.0\.0\.m\.\d+\.cv[12]\.conv\.weight
backbone\.0\.projector\.stages\.0\.0\.m\.\d+\.cv[12]\.bn\.(weight|bias)
backbone\.0\.projector\.stages\.0\.1\.(weight|bias)
transformer\.decoder\.layers\.\d+\.self_attn\.(in_proj_weight|in_proj_bias)
transformer\.decoder\.layers\.\d+\.self_attn\.out_proj\.(weight|bias)
transformer\.decoder\.layers\.\d+\.cross_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)
transformer\.decoder\.layers\.\d+\.(norm[123]|linear[12])\.(weight|bias)
transformer\.decoder\.norm\.(weight|bias)
transformer\.decoder\.ref_point_head\.layers\.[01]\.(weight|bias)
transformer\.enc_output(_norm)?\.\d+\.(weight|bias)
transformer\.enc_out_class_embed\.\d+\.(weight|bias)
transformer\.enc_out_bbox_embed\.\d+\.layers\.[012]\.(weight|bias)
refpoint_embed\.weight
query_feat\.weight
class_embed\.(weight|bias)
bbox_embed\.layers\.[012]\.(weight|bias)
"""
MASK_NAMES = r"""
segmentation_head\.blocks\.\d+\.(norm|dwconv|pwconv1)\.(weight|bias)
segmentation_head\.(spatial_features_proj|query_features_proj)\.(weight|bias)
segmentation_head\.query_features_block\.(norm_in|layers\.0|layers\.2)\.(weight|bias)
segmentation_head\.bias
"""
Small = Callable[..., None]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Makes published sizes tiny, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *keys: [shrink(key, tmp_path / "cache", monkeypatch) for key in keys]


def checkpoint(path: Path, model: RFDETR) -> dict[str, Any]:
    """A file as a run writes it, read as these programs read it."""
    about = description(model.model_config, model.class_names)
    save_checkpoint(path, {"model": published_weights(model.module.state_dict()), **about})
    return torch.load(path, map_location="cpu", weights_only=False)


def test_the_documents_of_supervision(small: Small, tmp_path: Path) -> None:
    small("medium", "keypoint-preview")
    model = rfdetr.RFDETRMedium()
    Image.fromarray(PIXELS).save("image.png")
    found = [model.predict(one, threshold=0.05) for one in (PIXELS, Image.fromarray(PIXELS), "image.png")]
    assert all(isinstance(one, sv.Detections) and len(one) for one in found)
    assert all(np.array_equal(one.xyxy, found[0].xyxy) for one in found)
    names = found[0]["class_name"]
    assert set(names) <= {*model.class_names, ""}
    labels = [f"{name} {score:.2f}" for name, score in zip(names, found[0].confidence, strict=True)]
    drawn = sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(PIXELS.copy(), found[0]), found[0], labels)
    assert not np.array_equal(drawn, PIXELS)
    assert isinstance(rfdetr.RFDETRKeypointPreview().predict(PIXELS, threshold=0.0), sv.KeyPoints)
    points = decided_model("keypoints", resolution=56).predict(PIXELS, threshold=0.0)
    assert not np.array_equal(sv.VertexAnnotator().annotate(PIXELS.copy(), points), PIXELS)


ZOO = "Nano Small Medium Base Large SegNano SegSmall SegMedium SegLarge SegXLarge Seg2XLarge"


@pytest.mark.parametrize("name", [f"RFDETR{size}" for size in ZOO.split()])
def test_the_zoo_of_fiftyone_and_sahi_find_every_size(name: str) -> None:
    kind = getattr(rfdetr, name)
    assert kind is getattr(importlib.import_module("rfdetr.detr"), name)
    assert ("seg" in kind.size) == kind.get_model_config().segmentation_head


def test_the_zoo_of_fiftyone(small: Small) -> None:
    small("nano", "seg-nano")
    pictures = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[:40])]
    for name in ("RFDETRNano", "RFDETRSegNano"):
        model = getattr(rfdetr, name)(device="cpu")
        results = model.predict(pictures, threshold=0.01)
        assert isinstance(results, list) and len(results) == 2
        assert isinstance(model.class_names, list) and isinstance(model.class_names[0], str)
        assert len(model.predict(pictures[:1], threshold=0.01)) == 1
        for picture, one in zip(pictures, results, strict=True):
            assert float(one.confidence[0]) > 0.01
            assert int(one.class_id[0]) >= 0
            if "Seg" in name:
                assert (one.mask.dtype, one.mask.shape) == (np.dtype(bool), (len(one), *picture.size[::-1]))
            else:
                assert one.mask is None


def test_sahi(small: Small, tmp_path: Path) -> None:
    small("seg-nano", "nano")
    weights = str(tmp_path / "cache" / "rf-detr-seg-nano.pt")
    model = rfdetr.detr.RFDETRSegNano(device="cpu", num_classes=None, pretrain_weights=weights, resolution=56)
    assert isinstance(model, rfdetr.detr.RFDETR)
    assert "seg" in model.size
    one = model.predict(PIXELS, threshold=0.01)
    rows = zip(one.xyxy, one.mask, one.confidence, one.class_id, strict=True)
    assert all(mask.shape == PIXELS.shape[:2] and int(label) >= 0 and float(score) for _, mask, score, label in rows)
    model = rfdetr.detr.RFDETRNano(device="cpu", num_classes=None)
    assert model.model_config.num_classes == 90
    assert "seg" not in model.size
    assert model.predict(PIXELS, threshold=0.01).mask is None


def test_the_upload_of_roboflow_knows_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_model(num_classes=2)
    model.model.class_names = ["cat", "dog"]
    found = checkpoint(tmp_path / "checkpoint_best_total.pth", model)
    assert "pytorch-lightning_version" not in found
    assert found["model_name"] == "RFDETRNano"
    args = found["args"]
    assert (args["class_names"], args["segmentation_head"], args["num_keypoints_per_class"]) == (
        ["cat", "dog"],
        False,
        [],
    )
    assert args["positional_encoding_size"] == args["resolution"] // args["patch_size"]
    assert hasattr(rfdetr.RFDETR, "export_for_roboflow")
    rfdetr.RFDETR.from_checkpoint(str(tmp_path / "checkpoint_best_total.pth")).export_for_roboflow(str(tmp_path / "to"))
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["class_names.txt", "weights.pt"]


@pytest.mark.parametrize("build", [tiny_model, tiny_segmenter])
def test_inference_and_transformers_find_the_names_in_a_file(build: Any, tmp_path: Path) -> None:
    model = build(num_classes=4)
    weights = checkpoint(tmp_path / "weights.pt", model)["model"]
    assert weights["class_embed.bias"].shape[0] == 4 + 1
    patterns = (NAMES + (MASK_NAMES if build is tiny_segmenter else "")).split()
    unknown = {name for name in weights if not any(re.fullmatch(pattern, name) for pattern in patterns)}
    unused = [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in weights)]
    assert (unknown, unused) == (set(), [])
    width = model.model_config.hidden_dim
    assert weights["transformer.decoder.layers.0.self_attn.in_proj_weight"].shape == (3 * width, width)
    assert weights["transformer.enc_out_class_embed.1.weight"].shape == (5, width)
    assert weights["refpoint_embed.weight"].shape == (model.model_config.num_queries * 2, 4)


def test_inference_takes_the_outputs_of_an_onnx_file_by_their_places(tmp_path: Path) -> None:
    model = decided_model("segment")
    session = onnxruntime.InferenceSession(model.export(tmp_path, verbose=False, max_images=1))
    [given] = session.get_inputs()
    assert given.shape[1:] == [3, 48, 48]
    images = np.random.default_rng(0).normal(size=(1, 3, 48, 48)).astype(np.float32)
    boxes, logits, masks = session.run(None, {given.name: images})
    with torch.no_grad():
        expected = model.module(torch.from_numpy(images))
    np.testing.assert_allclose(boxes, expected["pred_boxes"].numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, expected["pred_logits"].numpy(), atol=1e-3)
    assert masks.shape == (1, 6, 12, 12)


def test_autodistill(small: Small, tmp_path: Path) -> None:
    from rfdetr.datasets.source import DataSource
    from rfdetr.datasets.write import write_yolo

    small("base", "large")
    for model in (rfdetr.RFDETRBase(), rfdetr.RFDETRLarge()):
        model.optimize_for_inference()
        Image.fromarray(PIXELS).save("image.jpg")
        assert isinstance(model.predict("image.jpg", threshold=0.5), sv.Detections)
    source = DataSource([tiny_data(tmp_path / "coco")], {}, "roboflow", masks=False, keypoints=False)
    train = source.read("train", None)
    write_yolo({"train": train, "valid": source.read("valid", train)}, tmp_path / "yolo")
    model = rfdetr.RFDETRBase()
    quiet = {name: TRAINING[name] for name in ("tensorboard", "run_test", "num_workers")}
    options = {"epochs": 1, "batch_size": 4, "grad_accum_steps": 4, "lr": 1e-4, "output_dir": "training-output"}
    model.train(dataset_dir=str(tmp_path / "yolo" / "data.yaml"), **options, **quiet)
    assert Path("training-output/checkpoint_best_total.pth").is_file()


def test_frigate(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small("nano")
    model = rfdetr.RFDETRNano(resolution=56)
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(ImportError, match=r"simplifying ONNX files needs onnxslim: pip install \"rfdetr\[onnx\]\""):
        model.export(simplify=True)
    assert not Path("output/inference_model.onnx").exists()
    slim = type("Slim", (), {"slim": staticmethod(lambda content: content)})
    monkeypatch.setitem(sys.modules, "onnxslim", slim)
    model.export(simplify=True)
    graph = onnx.load("output/inference_model.onnx").graph
    assert [port.dim_value for port in graph.input[0].type.tensor_type.shape.dim][1:] == [3, 56, 56]
    assert [port.name for port in graph.output] == ["dets", "labels"]


def test_otx(small: Small, tmp_path: Path) -> None:
    from rfdetr.datasets.coco import compute_multi_scale_scales
    from rfdetr.main import populate_args
    from rfdetr.models.lwdetr import build_criterion_and_postprocessors
    from rfdetr.util.get_param_dicts import get_param_dict
    from rfdetr.util.misc import nested_tensor_from_tensor_list

    small("nano")
    # It goes on with the published weights, in spite of the option that never existed.
    model = rfdetr.RFDETRNano(num_classes=90, pretrained_weights=None, gradient_checkpointing=False)
    model.model.reinitialize_detection_head(4)
    model.model.args.num_classes = 4
    network = model.model.model
    config, run = model.get_model_config().model_dump(), model.get_train_config(dataset_dir="").model_dump()
    config.pop("num_classes")
    settings = {name: value for name, value in config.items() if name not in run}
    args = populate_args(**{**settings, **run, "num_classes": 4})
    criterion, postprocess = build_criterion_and_postprocessors(args)
    criterion.num_classes = 4
    args.lr, args.weight_decay = 1e-3, 1e-4
    assert torch.optim.AdamW(get_param_dict(args, network)).param_groups[-1]["lr"] > 0
    sizes = compute_multi_scale_scales(args.resolution, args.expanded_scales, args.patch_size, args.num_windows)
    assert all(size % 14 == 0 for size in sizes) and args.resolution in sizes

    images = nested_tensor_from_tensor_list(list(torch.rand(2, 3, 56, 56)))
    target = {"labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    network.train()
    criterion.train()
    losses = criterion(network(images), [target, target])
    weighted = {
        name: value * criterion.weight_dict[name] for name, value in losses.items() if name in criterion.weight_dict
    }
    sum(weighted.values()).backward()
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_enc"} <= set(weighted)
    network.export()
    outputs = network(images.tensors)
    assert outputs["pred_logits"].shape == (2, 10, 4)
    with torch.no_grad():
        found = postprocess(network(images), torch.tensor([(60, 90), (30, 30)]))
    assert [set(one) for one in found] == [{"scores", "labels", "boxes"}] * 2
    assert float(found[1]["boxes"].max()) <= 30


def test_a_batch_with_padding_is_the_same_as_pictures_and_their_mask() -> None:
    from rfdetr.util.misc import nested_tensor_from_tensor_list

    network = tiny_model().module
    batch = nested_tensor_from_tensor_list([torch.rand(3, 64, 40), torch.rand(3, 64, 64)])
    with torch.no_grad():
        one, other = network(batch), network(*batch.decompose())
    assert torch.equal(one["pred_boxes"], other["pred_boxes"])


def test_lightly_train(small: Small, tmp_path: Path) -> None:
    import rfdetr.main
    from rfdetr.models.backbone import Backbone
    from rfdetr.models.backbone.dinov2 import DinoV2, WindowedDinov2WithRegistersBackbone
    from rfdetr.models.lwdetr import LWDETR

    assert {row.weights for row in VARIANTS.values() if row.weights} <= set(rfdetr.main.HOSTED_MODELS)
    assert all(url.startswith("https://") for url in rfdetr.main.HOSTED_MODELS.values())
    small("base")
    model = rfdetr.RFDETRBase()
    network = model.model.model
    assert isinstance(model, rfdetr.detr.RFDETR)
    assert isinstance(network, LWDETR)
    assert isinstance(network.backbone[0], Backbone)
    encoder = network.backbone[0].encoder
    assert isinstance(encoder, DinoV2)
    assert isinstance(encoder.encoder, WindowedDinov2WithRegistersBackbone)
    features = encoder.train()(torch.zeros(2, 3, 56, 56))[-1]
    assert features.shape == (2, encoder._out_feature_channels[-1], 4, 4)
    with torch.no_grad():
        encoder.class_token.add_(1)
    torch.save({"model": network.state_dict()}, tmp_path / "exported.pth")
    again = rfdetr.RFDETRBase(pretrain_weights=str(tmp_path / "exported.pth"))
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.model.state_dict().items())


def test_libreyolo() -> None:
    from rfdetr.config import RFDETRNanoConfig
    from rfdetr.main import Model
    from rfdetr.models.lwdetr import LWDETR, MLP, PostProcess

    config = RFDETRNanoConfig(**{name: value for name, value in TASK_MODEL.items() if name != "resolution"})
    model = Model(**config.model_dump())
    assert isinstance(model.model, LWDETR)
    model.model.reinitialize_detection_head(7)
    assert MLP(8, 8, 4, 2)(torch.zeros(1, 8)).shape == (1, 4)
    with torch.no_grad():
        outputs = model.model.eval()(torch.zeros(1, 3, 64, 64))
    assert outputs["pred_logits"].shape == (1, 10, 7)
    [found] = PostProcess(num_select=5)(outputs, torch.tensor([[60, 90]]))
    assert len(found["scores"]) == 5


def test_boxmot(small: Small) -> None:
    from rfdetr.util.coco_classes import COCO_CLASSES

    small("base")
    found = rfdetr.RFDETRBase(device="cpu").predict(PIXELS, threshold=0.01)
    rows = np.column_stack((found.xyxy, found.confidence, found.class_id))
    assert rows.shape == (len(found), 6)
    assert all(name in COCO_CLASSES.values() for name in found.data["class_name"] if name)


class PlusConfig(ModelConfig):
    """As the package of the largest sizes writes its configurations."""

    encoder: Literal["dinov2_windowed_base", "dinov2_windowed_tiny"] = "dinov2_windowed_tiny"
    hidden_dim: int = 32
    dec_layers: int = 2
    sa_nheads: int = 4
    ca_nheads: int = 4
    num_windows: int = 1
    patch_size: int = 20
    out_feature_indexes: list[int] = [2, 4]  # noqa: RUF012
    num_classes: int = 365
    positional_encoding_size: int = 100 // 20
    resolution: int = 100
    num_queries: int = 10
    pretrain_weights: PathLikeStr | None = "rf-detr-xlarge.pth"
    license: str = "PML-1.0"


class Plus(RFDETR):
    size: Literal["rfdetr-xlarge"] = "rfdetr-xlarge"
    _model_config_class = PlusConfig

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("accept_platform_model_license", None)
        super().__init__(**kwargs)


def test_the_package_of_the_largest_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RF_HOME", str(tmp_path))
    model = Plus(pretrain_weights=None, accept_platform_model_license=True, device="cpu")
    assert (model.size, model.model_config.license, len(model.class_names)) == ("rfdetr-xlarge", "PML-1.0", 365)
    assert len(model.predict(PIXELS, threshold=0.0)) > 0
    with pytest.raises(FileNotFoundError, match=r"Platform Model License 1\.0"):
        Plus()
    # The file lies in the cache once that package has fetched it.
    checkpoint(tmp_path / "rf-detr-xlarge.pth", model)
    again = Plus(num_classes=365)
    assert torch.equal(again.module.class_head.weight, model.module.class_head.weight)


def test_scripts_with_callbacks(tmp_path: Path) -> None:
    model = tiny_model()
    epochs: list[dict[str, Any]] = []
    batches: list[dict[str, Any]] = []
    ended: list[bool] = []

    def stop(log: dict[str, Any]) -> None:
        epochs.append(log)
        model.model.request_early_stop()

    model.callbacks["on_fit_epoch_end"].append(stop)
    model.callbacks["on_train_batch_start"].append(batches.append)
    model.callbacks["on_train_end"].append(lambda: ended.append(True))
    model.train(dataset_dir=tiny_data(tmp_path / "data"), output_dir=tmp_path / "run", epochs=5, **TRAINING)
    assert [log["epoch"] for log in epochs] == [0]
    assert len(epochs[0]["test_coco_eval_bbox"]) == 12
    assert json.loads((tmp_path / "run" / "log.txt").read_text(encoding="utf-8"))["train_loss"] > 0
    assert {"step", "epoch"} <= set(batches[0])
    assert ended == [True]


def test_scripts_that_load_weights_by_hand(tmp_path: Path) -> None:
    model, other = tiny_model(num_classes=2), tiny_model(num_classes=2)
    found = checkpoint(tmp_path / "weights.pth", model)
    assert str(other.model.model.load_state_dict(found["model"], strict=True)) == "<All keys matched successfully>"
    assert torch.equal(other.module.class_head.weight, model.module.class_head.weight)
    lightning = {f"model.{name}": tensor for name, tensor in found["model"].items()}
    settings = {"state_dict": lightning, "hyper_parameters": found["args"]}
    torch.save({**settings, "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    again = rfdetr.RFDETRNano(**{**MODEL, "pretrain_weights": str(tmp_path / "last.ckpt")})
    assert torch.equal(again.module.class_head.weight, model.module.class_head.weight)
    assert again.model.device == torch.device("cpu")


def test_scripts_that_name_classes() -> None:
    model = decided_model()
    model.model.class_names = ["cat", "dog", "bird"]
    assert model.class_names == ["cat", "dog", "bird"]
    found = model.predict(PIXELS, threshold=0.3)
    assert found.data["class_name"].tolist() == [model.class_names[label] for label in found.class_id]


# Names that scripts import from where they are; what each is for is tested elsewhere.
IMPORTS = """
from rfdetr.assets.coco_classes import COCO_CLASSES
from rfdetr.util.coco_classes import COCO_CLASSES
from rfdetr.util.metrics import MetricsPlotSink, MetricsTensorBoardSink, MetricsWandBSink
from rfdetr.util.misc import nested_tensor_from_tensor_list
from rfdetr.engine import evaluate, train_one_epoch
from rfdetr.datasets import build_dataset
from rfdetr.config import PretrainWeightsCompatibilityWarning, TrainConfig
from rfdetr.assets.model_weights import download_pretrain_weights
"""


@pytest.mark.parametrize("line", IMPORTS.strip().splitlines())
def test_scripts_import(line: str) -> None:
    exec(line)
