"""Files of keypoint models: their schema, other schemas, older networks, and what a fine-tuning starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import MODEL

import rfdetr
from rfdetr import RFDETRKeypointPreview
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint
from rfdetr.models.keypoint_network import schema_masks
from rfdetr.models.refit import forget_precision, resize_keypoints, resize_rows

NAMES = ["a", "b", "c", "d"]
SCHEMA = [3, 0, 2]


def tiny(**options) -> RFDETRKeypointPreview:
    return RFDETRKeypointPreview(**{**MODEL, "resolution": 48, **options})


@pytest.fixture(scope="module")
def model() -> RFDETRKeypointPreview:
    torch.manual_seed(0)
    model = tiny(num_classes=4, num_keypoints_per_class=SCHEMA)
    for parameter in model.model.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write(model: RFDETRKeypointPreview, path: Path, names=NAMES, without: str = "", **more) -> str:
    weights = published_weights(model.model.model.state_dict())
    weights = {name: tensor for name, tensor in weights.items() if not without or without not in name}
    save_checkpoint(path, {"model": weights, **description(model.model_config, names), **more})
    return str(path)


@pytest.fixture
def file(model, tmp_path) -> str:
    return write(model, tmp_path / "keypoints.pth")


def test_a_file_brings_its_schema_and_its_class(model, file):
    again = rfdetr.from_checkpoint(file, device="cpu")
    assert type(again) is RFDETRKeypointPreview
    assert (again.model_config.num_keypoints_per_class, again.class_names) == (SCHEMA, NAMES)
    for name, tensor in model.model.model.state_dict().items():
        assert torch.equal(tensor, again.model.model.state_dict()[name]), name


def test_a_schema_of_the_user_wins_and_its_tokens_repeat_those_of_the_file(model, file):
    again = tiny(pretrain_weights=file, num_keypoints_per_class=[7, 1])
    network, old = again.model.model.keypoints, model.model.model.keypoints
    wanted = torch.arange(8) % 5
    for ours, theirs in (
        (network.position, old.position),
        (network.start.tokens, old.start.tokens),
        (network.box_start.tokens, old.box_start.tokens),
    ):
        assert torch.equal(ours, theirs[wanted])
    active, blocked = schema_masks([7, 1])
    assert torch.equal(network.active, active)
    assert torch.equal(network.blocked, blocked)


def test_a_file_whose_boxes_and_keypoints_share_a_projector_gives_it_to_both(model, tmp_path):
    file = write(model, tmp_path / "old.pth", without="cross_attn_projector")
    again = tiny(pretrain_weights=file).model.model
    for own, shared in zip(again.keypoints.projector.parameters(), again.projector.parameters(), strict=True):
        assert torch.equal(own, shared)


@pytest.mark.parametrize("task", ["RFDETRNano", "RFDETRSegNano"])
def test_a_file_of_another_task_is_refused_with_the_right_class(file, task):
    with pytest.raises(ValueError, match=r"It holds RFDETRKeypointPreview: use rfdetr\.RFDETRKeypointPreview"):
        getattr(rfdetr, task)(pretrain_weights=file, device="cpu")


def test_a_network_in_memory_takes_another_schema_as_a_file_does(file):
    """Resizing in memory and resizing at loading end with the same network."""
    loaded = tiny(pretrain_weights=file, num_keypoints_per_class=[4]).model.model
    resized = tiny(pretrain_weights=file).model.model
    resize_keypoints(resized.keypoints, (4,))
    assert resized.keypoints.schema == (4,)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        one, other = loaded.eval()(images), resized.eval()(images)
    for name in ("pred_logits", "pred_boxes", "pred_keypoints"):
        assert torch.equal(one[name], other[name])


def test_forgetting_the_precision_leaves_everything_else_alone(file):
    model = tiny(pretrain_weights=file).model.model.eval()
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        before = model(images)
        forget_precision(model.keypoints)
        after = model(images)
    for one, other in ((before, after), (before["enc_outputs"], after["enc_outputs"])):
        assert not other["pred_keypoints"][..., 4:7].any()
        left = [0, 1, 2, 3, 7]
        assert torch.equal(one["pred_keypoints"][..., left], other["pred_keypoints"][..., left])
        assert torch.equal(one["pred_logits"], other["pred_logits"])


def test_rows_are_cut_or_repeated_and_zero_where_there_were_none():
    rows = torch.arange(6.0).view(3, 2)
    assert resize_rows(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert resize_rows(rows, 2).tolist() == [[0, 1], [2, 3]]
    assert resize_rows(rows[:0], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("schema", "classes", "names", "labels"),
    [
        ([17], 90, ["person"], [0]),
        ([0, 17], 2, ["person"], [1]),
        ([0, 4, 0, 3], 4, ["0", "1"], [1, 3]),
        ([4, 0, 2], 3, ["0", "1"], [0, 2]),
        ([2, 3], 2, ["0", "1"], [0, 1]),
    ],
)
def test_class_names_of_files_without_any(schema, classes, names, labels):
    model = tiny(num_classes=classes, num_keypoints_per_class=schema).model
    assert (model.class_names, model.class_labels) == (names, labels)
    shown = model.name_of_label()
    assert [shown[label] for label in labels] == names
    if not schema[0]:
        assert shown[0] == "__background__"
    assert len(shown) == classes + 1
