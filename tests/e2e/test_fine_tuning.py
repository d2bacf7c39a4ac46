"""Tools of fine-tuning: frozen encoders, adapters, less memory, known classes, more queries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rfdetr
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.models.detector import Detector
from rfdetr.models.lora import AdaptedLinear
from rfdetr.training import finish


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the plot takes longer than the training."""
    monkeypatch.setattr(finish, "plot_history", lambda history, path: path.write_bytes(b"plot"))


def seeded(**options: Any) -> Any:
    """A model whose random weights are always the same."""
    torch.manual_seed(0)
    return tiny_model(**options)


def train(model: Any, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Train one epoch and return the last checkpoint."""
    model.train(**{"dataset_dir": data, "output_dir": out, "epochs": 1, **TRAINING, "multi_scale": False, **options})
    return load(out / "checkpoint.pth")


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@contextmanager
def counting() -> Iterator[list[int]]:
    """Bytes that are kept for the backward pass, tensor by tensor; weights are there in any case."""
    kept: list[int] = []
    seen: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if not isinstance(tensor, torch.nn.Parameter) and pointer not in seen:
            kept.append(tensor.untyped_storage().nbytes())
        # Held by the graph, so that no other tensor gets its place.
        seen.add(pointer)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def one_step(module: Detector) -> tuple[torch.Tensor, int]:
    """Total loss of a training step on drawn pictures, after its backward pass, and the bytes kept for that."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, 96, 96, generator=generator)
    boxes = torch.rand(2, 3, 4, generator=generator) * 0.4 + 0.2
    targets = [{"boxes": one, "labels": torch.tensor([0, 1, 2])} for one in boxes]
    criterion = Criterion(loss_weights(2), module.groups)
    module.train()
    criterion.train()
    with counting() as kept:
        total = criterion.weighted_total(criterion(module(images), targets))
    total.backward()
    return total.detach(), sum(kept)


# A frozen encoder

PREFIX = ("encoder.patches.", "encoder.class_token", "encoder.positions", "encoder.blocks.0.", "encoder.blocks.1.")


@pytest.mark.parametrize(
    ("value", "frozen"),
    [
        pytest.param(False, (), id="False"),
        pytest.param(True, ("encoder.",), id="N021-True"),
        pytest.param(2, PREFIX, id="N021-2"),
    ],
)
def test_frozen_weights_stay_and_the_others_move(
    value: bool | int, frozen: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    model = seeded(freeze_encoder=value)
    before, asked, groups = {}, [], []

    def before_batch(info: dict[str, Any]) -> None:
        # The class head has its final number of rows here.
        before.update({} if before else copy_of(info["model"]))
        asked.append(info["model"])

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups.append([name for group in optimizer.param_groups for name in group["names"]])
        for name, parameter in asked[-1].named_parameters():
            assert (parameter.grad is None) == (not parameter.requires_grad), name
            assert parameter.requires_grad == (name in groups[-1])

    model.callbacks["on_train_batch_start"].append(before_batch)
    handle = register_optimizer_step_pre_hook(before_step)
    try:
        # An average that follows at once, so that whatever is best has been trained.
        last = train(model, data, tmp_path, ema_tau=0, ema_decay=0, weight_decay=0.0)
    finally:
        handle.remove()
    names = groups[0]
    usual = {name for name, parameter in seeded().model.model.named_parameters() if parameter.requires_grad}
    assert set(names) == {name for name in usual if not name.startswith(frozen or "-")}
    assert last["param_names"] == names
    assert len(last["optimizer"]["state"]) == len(names)
    after = model.model.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(frozen or "-")} <= same
    assert not same & set(names)


@pytest.mark.parametrize(("value", "silent"), [(True, 4), (2, 2), (False, 0)])
def test_N021_nothing_is_kept_for_frozen_blocks(value: bool | int, silent: int) -> None:
    """Four of the six blocks are read; the second tap is behind the fourth."""
    module = seeded(freeze_encoder=value).model.model.train()
    so_far: list[int] = []
    with counting() as kept:
        for block in module.encoder.blocks[:4]:
            block.register_forward_pre_hook(lambda *_: so_far.append(sum(kept)))
            block.register_forward_hook(lambda *_: so_far.append(sum(kept)))
        maps = module.encoder(torch.randn(2, 3, 96, 96))
    before, after = so_far[::2], so_far[1::2]
    assert (before[0] == 0) == (silent > 0)
    assert [late == early for early, late in zip(before, after, strict=True)] == [block < silent for block in range(4)]
    # The norm behind the taps is a part of the encoder, but of no block.
    assert all(one.requires_grad for one in maps) == (value is not True)
    assert (sum(kept) == 0) == (value is True)


@pytest.mark.parametrize("value", [True, 2])
def test_N021_a_frozen_encoder_takes_less_memory_and_leaves_the_losses_as_they_are(value: bool | int) -> None:
    plain, frozen = seeded().model.model, seeded(freeze_encoder=value).model.model
    (loss, kept), (same, fewer) = one_step(plain), one_step(frozen)
    assert torch.equal(loss, same)
    assert fewer < 0.9 * kept
    others = dict(plain.named_parameters())
    for name, parameter in frozen.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, others[name].grad)


# Recomputed activations


def test_S026_S075_gradient_checkpointing_changes_memory_alone() -> None:
    plain, saving = seeded().model.model, seeded(gradient_checkpointing=True).model.model
    (loss, kept), (same, fewer) = one_step(plain), one_step(saving)
    assert torch.allclose(loss, same, rtol=0, atol=1e-6)
    assert fewer < 0.7 * kept
    others = dict(plain.named_parameters())
    for name, parameter in saving.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, others[name].grad, rtol=0, atol=1e-6), name


def test_S026_S118_both_places_to_ask_for_it_train_alike(data: Path, tmp_path: Path) -> None:
    """With stochastic depth, whose draws must be the same when a block is computed again."""
    ways: dict[str, Callable[[Path], dict[str, Any]]] = {
        "off": lambda out: train(seeded(), data, out, drop_path=0.3),
        "constructor": lambda out: train(seeded(gradient_checkpointing=True), data, out, drop_path=0.3),
        "train": lambda out: train(seeded(), data, out, drop_path=0.3, gradient_checkpointing=True),
    }
    ends = {name: way(tmp_path / name) for name, way in ways.items()}
    assert [end["model_config"]["gradient_checkpointing"] for end in ends.values()] == [False, True, True]
    losses = [json.loads((tmp_path / name / "log.txt").read_text())["train_loss"] for name in ends]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    for name, tensor in ends["constructor"]["model"].items():
        assert torch.equal(tensor, ends["train"]["model"][name])


# Adapters


def test_S061_adapters_train_query_key_and_value_and_are_gone_afterwards(data: Path, tmp_path: Path) -> None:
    model = seeded(backbone_lora=True)
    before, adapted = copy_of(model.model.model), []
    model.callbacks["on_train_batch_start"].append(
        lambda info: adapted.append(sum(isinstance(module, AdaptedLinear) for module in info["model"].modules()))
    )
    trainable = {name for name, parameter in model.model.model.named_parameters() if parameter.requires_grad}
    last = train(model, data, tmp_path, lr_encoder=1e-3)
    assert adapted == [4] * 5
    # In memory and in the file there is a plain network.
    module = model.model.model
    assert not any(isinstance(part, AdaptedLinear) for part in module.modules())
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == trainable
    total = load(tmp_path / "checkpoint_best_total.pth")
    for content in (total, last):
        assert not any("lora" in name or "magnitude" in name for name in content["model"])
        assert content["model"].keys() == load_plain_names()
    # Of the encoder only what the adapters are for has moved.
    after = module.state_dict()
    moved = {name for name in before if name.startswith("encoder.") and not torch.equal(before[name], after[name])}
    assert moved == {f"encoder.blocks.{block}.attention.qkv.weight" for block in range(4)}
    for name in moved:
        for old, new in zip(before[name].chunk(3), after[name].chunk(3), strict=True):
            assert not torch.equal(old, new)
    # A plain model made of the file finds the same.
    pictures = sorted((data / "valid").glob("*.jpg"))
    for options in ({}, {"backbone_lora": False}):
        plain = rfdetr.from_checkpoint(tmp_path / "checkpoint_best_total.pth", device="cpu", **options)
        for one, other in zip(plain.predict(pictures, 0.0), model.predict(pictures, 0.0), strict=True):
            assert len(one) > 0
            assert (one.xyxy == other.xyxy).all()
            assert (one.confidence == other.confidence).all()
            assert (one.class_id == other.class_id).all()


def load_plain_names() -> set[str]:
    """Published names of the tensors of a network without adapters."""
    from rfdetr.checkpoints.names import to_published

    return to_published(seeded().model.model.state_dict()).keys()


# Classes that the weights know


@pytest.fixture(scope="module")
def shapes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose classes are circle, square, triangle, star, all with rows of their own."""
    model = seeded()
    out = tmp_path_factory.mktemp("shapes")
    # Class heads start with equal biases; these do not.
    model.train(dataset_dir=data, output_dir=out, epochs=1, **{**TRAINING, "lr": 1e-2})
    path = out / "checkpoint_best_total.pth"
    content = load(path)
    assert content["args"]["class_names"] == ["circle", "square", "triangle", "star"]
    for rows in heads_of(content["model"]):
        for bias in rows["bias"].view(-1, 5):
            bias += torch.arange(5) * 0.1
    torch.save(content, path)
    return path


def heads_of(weights: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Rows of the class heads in a file: of the decoder, and of the proposals of each group."""
    names = ["class_embed", *(f"transformer.enc_out_class_embed.{group}" for group in range(2))]
    return [{part: weights[f"{name}.{part}"] for part in ("weight", "bias")} for name in names]


def rows_at_start(model: Any, data: Path, out: Path, **options: Any) -> list[dict[str, torch.Tensor]]:
    """Rows of the class heads before the first step of a run."""
    found: list[dict[str, torch.Tensor]] = []

    def note(info: dict[str, Any]) -> None:
        if not found:
            head, grouped = copy_of(info["model"].class_head), copy_of(info["model"].proposals.classes)
            found.append(head)
            found.extend({part: rows[group] for part, rows in grouped.items()} for group in range(2))

    model.callbacks["on_train_batch_start"].append(note)
    train(model, data, out, **options)
    return found


def renamed(data: Path, folder: Path, names: list[str]) -> Path:
    """The same pictures with other names."""
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True)
        document = json.loads((data / split / "_annotations.coco.json").read_text())
        document["categories"] = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
        (folder / split / "_annotations.coco.json").write_text(json.dumps(document))
        for image in document["images"]:
            (folder / split / image["file_name"]).symlink_to(data / split / image["file_name"])
    return folder


@pytest.mark.parametrize(
    ("names", "places"),
    [
        # place in the file of each new row that must be kept
        pytest.param(["star", "heart", "circle", "ring", "square"], {0: 3, 2: 0, 4: 1}, id="more-in-another-order"),
        pytest.param(["star", "triangle", "circle", "square"], {0: 3, 1: 2, 2: 0, 3: 1}, id="another-order"),
        pytest.param(["heart", "ring", "moon", "sun"], {}, id="none-known"),
    ],
)
def test_keep_classes_keeps_the_rows_of_known_names(
    names: list[str], places: dict[int, int], shapes: Path, data: Path, tmp_path: Path
) -> None:
    other = renamed(data, tmp_path / "data", names)
    old = heads_of(load(shapes)["model"])
    kept = rows_at_start(rfdetr.from_checkpoint(shapes, device="cpu"), other, tmp_path / "kept", keep_classes=True)
    usual = rows_at_start(rfdetr.from_checkpoint(shapes, device="cpu"), other, tmp_path / "usual")
    for before, after, repeated in zip(old, kept, usual, strict=True):
        assert len(after["bias"]) == len(repeated["bias"]) == len(names) + 1
        for row in range(len(names) + 1):
            if row in places:
                assert torch.equal(after["weight"][row], before["weight"][places[row]])
                assert torch.equal(after["bias"][row], before["bias"][places[row]])
            else:
                assert float(after["bias"][row]) == pytest.approx(-math.log(99))
                assert not any(torch.equal(after["weight"][row], known) for known in before["weight"])
            # Without it, rows are taken by place and repeated.
            assert torch.equal(repeated["weight"][row], before["weight"][row % 5])
            assert torch.equal(repeated["bias"][row], before["bias"][row % 5])
    assert rfdetr.from_checkpoint(tmp_path / "kept" / "checkpoint_best_total.pth").class_names == names


# More queries than the file has


def test_a_file_grows_by_queries(shapes: Path, data: Path, tmp_path: Path) -> None:
    model = rfdetr.from_checkpoint(shapes, device="cpu", num_queries=14, num_select=70)
    old, start = load(shapes)["model"], []
    model.callbacks["on_train_batch_start"].append(lambda info: start.append(copy_of(info["model"])))
    train(model, data, tmp_path)
    for name, table in (("query_boxes", "refpoint_embed.weight"), ("query_features", "query_feat.weight")):
        grown, given = start[0][name].view(2, 14, -1), old[table].view(2, 10, -1)
        assert torch.equal(grown[:, :10], given)
        assert torch.equal(grown[:, 10:], given[:, :4])
    # All of them find something: one box per query, named more than once.
    found = model.predict(next((data / "valid").glob("*.jpg")), threshold=0.0)
    assert 10 < len({tuple(box) for box in found.xyxy.tolist()}) <= 14
    assert rfdetr.from_checkpoint(tmp_path / "checkpoint_best_total.pth").model_config.num_queries == 14
