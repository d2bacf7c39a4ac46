"""Everything around the gradient: groups, order of a step, schedules, averages, sizes, stopping, resized heads."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from tests.vectors import CONFIGS, assert_close, read_json, read_tensors
from torch import nn

from rfdetr import RFDETRNano
from rfdetr.checkpoints.load import fit_queries
from rfdetr.checkpoints.names import published_names
from rfdetr.datasets.transforms import multi_scale_sizes
from rfdetr.models.backbone import Encoder
from rfdetr.models.build import build_model
from rfdetr.models.refit import resize_rows
from rfdetr.training.ema import ModelEma, ema_decay
from rfdetr.training.optim import Rates, build_optimizer, lr_factor, parameter_groups, rate_of
from rfdetr.training.runtime import Runtime
from rfdetr.training.state import EarlyStopping


def read_runs(variant: str) -> list:
    """(settings, recorded (lr, weight decay) by published name, recorded groups) of each recorded run."""
    return [
        (
            run["train_config"] | {"last_tap": run["out_feature_indexes"][-1]},
            {name: (lr, decay) for name, lr, decay in run["parameters_name_lr_weight_decay"]},
            {(lr, decay): count for count, lr, decay in run["merged_groups_count_lr_weight_decay"]},
        )
        for run in read_json(f"training/param_groups_{variant}")["runs"]
    ]


RUNS = [
    pytest.param(variant, *run, id=f"{variant}-{i}")
    for variant in ("nano", "base", "seg_nano", "keypoint_preview")
    for i, run in enumerate(read_runs(variant))
]


def rates_of(settings: dict) -> Rates:
    renamed = {"lr_vit_layer_decay": "layer_decay", "lr_component_decay": "component_decay"}
    return Rates(**{renamed.get(name, name): value for name, value in settings.items()})


@pytest.mark.parametrize(("variant", "settings", "recorded", "groups"), RUNS)
def test_rates_equal_the_recorded_ones(variant, settings, recorded, groups):
    found = {name: rate_of(name, rates_of(settings)) for name in recorded}
    assert_close(list(found.values()), list(recorded.values()), "rates", rtol=1e-12)
    assert sorted(Counter(found.values()).values()) == sorted(groups.values())


@pytest.mark.parametrize(("variant", "settings", "recorded", "groups"), RUNS)
def test_groups_hold_every_trained_parameter_at_its_recorded_rate(variant, settings, recorded, groups):
    model = build_model(CONFIGS[variant](pretrain_weights=None))
    found = {
        published: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, rates_of(settings))
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for published in published_names(name, len(parameter))
    }
    # Parameters that nothing reads: AdamW skips them in the recording because they never get a gradient.
    unread = {f"backbone.0.encoder.encoder.encoder.layer.{i}." for i in range(max(model.encoder.taps), 12)}
    missing = {name for name in recorded.keys() - found.keys() if not name.startswith(tuple(unread))}
    assert missing == {"backbone.0.encoder.encoder.embeddings.mask_token"}
    assert found.keys() <= recorded.keys()
    assert_close(list(found.values()), [recorded[name] for name in found], "rates", rtol=1e-12)
    assert len(set(found.values())) == len(parameter_groups(model, rates_of(settings)))


def test_order_of_a_training_step_equals_the_recorded_one():
    meta, tensors = read_json("training/optimiser_loop"), read_tensors("training/optimiser_loop")
    model = nn.ParameterList([tensors[f"p{i}/init"].clone() for i in range(3)])
    defaults = build_optimizer(build_model(CONFIGS["nano"]()), Rates(1, 1, 0, 1, 1, 12), fused=False).defaults
    assert (list(defaults["betas"]), defaults["eps"]) == (meta["betas"], meta["eps"])
    rows = zip(model, meta["lrs"], meta["weight_decays"], strict=True)
    groups = [{"params": [p], "lr": lr, "weight_decay": decay} for p, lr, decay in rows]
    optimizer = torch.optim.AdamW(groups, betas=defaults["betas"], eps=defaults["eps"])
    kind = meta["scheduler"]
    per_epoch = kind["warmup_steps"]
    factor = lr_factor(kind["name"], per_epoch, kind["total_steps"] // per_epoch, 1.0, floor=kind["min_factor"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    runtime, ema = Runtime(torch.device("cpu")), ModelEma(model, **meta["ema"])
    for step in range(meta["steps"]):
        assert_close(scheduler.get_last_lr(), meta["lr_used"][step], "lr", rtol=1e-12)
        for micro in range(meta["accumulation"]):
            losses = [(p * tensors[f"grad/step{step}/micro{micro}/p{i}"]).sum() for i, p in enumerate(model)]
            runtime.backward(sum(losses) / meta["accumulation"])
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model))
        assert_close(norm, meta["norm_before_clip"][step], "norm", rtol=1e-5)
        runtime.optimiser_step(optimizer, meta["clip_max_norm"])
        scheduler.step()
        ema.update(model)
        for i, (live, mean) in enumerate(zip(model, ema.module, strict=True)):
            assert_close(live, tensors[f"p{i}/after_step{step}"], f"p{i} after step {step}", 1e-7, 1e-5)
            assert_close(mean, tensors[f"ema{i}/after_step{step}"], f"mean {i} after step {step}", 1e-7, 1e-5)


@pytest.mark.parametrize("case", read_json("training/lr_schedule")["cases"], ids=lambda c: f"{c['index']}")
def test_learning_rate_factors_equal_the_recorded_ones(case):
    expected = read_tensors("training/lr_schedule")[f"factor/{case['index']}"]
    factor = lr_factor(
        case["lr_scheduler"],
        case["steps_per_epoch"],
        case["epochs"],
        case["warmup_epochs"],
        case["lr_drop"],
        case["min_factor"],
    )
    assert_close([factor(step) for step in range(len(expected))], expected, "factors", rtol=1e-12, atol=1e-15)


class Toy(nn.Module):
    """A parameter and two buffers."""

    def __init__(self, w: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())
        self.register_buffer("b", b.clone())
        self.register_buffer("count", torch.tensor(0))


@pytest.mark.parametrize("case", read_json("training/ema")["cases"], ids=lambda c: f"{c['decay']}")
def test_averages_equal_the_recorded_ones(case):
    tensors = read_tensors("training/ema")
    i = case["index"]
    live_w, live_b = tensors[f"{i}/live_w"], tensors[f"{i}/live_b"]
    model = Toy(live_w[0], live_b[0])
    ema = ModelEma(model, case["decay"], case["tau"])
    for k in range(case["updates"]):
        model.load_state_dict({"w": live_w[k + 1], "b": live_b[k + 1], "count": torch.tensor(k)})
        ema.update(model)
        assert_close(ema_decay(k + 1, case["decay"], case["tau"]), tensors[f"{i}/decay"][k], "decay", rtol=1e-12)
        assert_close(ema.module.w, tensors[f"{i}/ema_w"][k], f"parameter after update {k}", 1e-7, 2e-6)
        assert_close(ema.module.b, tensors[f"{i}/ema_b"][k], f"buffer after update {k}", 1e-7, 2e-6)
        assert ema.module.count == k


# The schedule over a run is constant in every setting that the options reach.
@pytest.mark.parametrize("rate", [0.2, 0.05])
def test_drop_path_rates_per_block_equal_the_recorded_ones(rate):
    expected = read_tensors("training/drop_schedule")[f"per_layer/{rate}"]
    with torch.device("meta"):
        encoder = Encoder(dim=8, heads=1, depth=12, patch_size=4, num_windows=1, position_side=2, taps=(12,))
    encoder.set_drop_path(rate)
    assert_close([block.drop_path for block in encoder.blocks], expected, "rates", rtol=1e-6)


@pytest.mark.parametrize(
    "row", read_json("training/multi_scale")["rows"], ids=lambda r: f"{r['variant']}-{r['resolution']}-{r['expanded']}"
)
def test_input_sizes_and_their_draws_equal_the_recorded_ones(row):
    sizes = multi_scale_sizes(row["resolution"], row["patch_size"] * row["num_windows"], row["expanded"])
    assert sizes == row["scales"]
    # The draw of `engine.train_one_epoch`.
    assert [random.Random(step).choice(sizes) for step in range(40)] == row["drawn_at_global_step_0_to_39"]


@pytest.mark.parametrize("name", read_json("training/early_stopping")["cases"])
def test_stopping_equals_the_recorded_one(name):
    case = read_json("training/early_stopping")["cases"][name]
    stopping = EarlyStopping(case["patience"], case["min_delta"], case["use_ema"])
    averaged = case["ema"] or [None] * len(case["regular"])
    counters, last = [], None
    for epoch, scores in enumerate(zip(case["regular"], averaged, strict=True)):
        # A run does not ask about epochs that cannot be the best.
        stop = epoch >= case.get("skip_best_epochs", 0) and stopping.should_stop(*scores)
        counters.append(stopping.counter)
        if stop:
            last = epoch
            break
    assert counters == case["counter_after_each_epoch"]
    assert last == case["stops_after_epoch_index"]


@pytest.mark.parametrize(
    "case", read_json("training/head_resize")["cases"], ids=lambda c: f"{c['old_rows']}-{c['new_rows']}"
)
def test_resized_rows_equal_the_recorded_ones(case):
    tensors = read_tensors("training/head_resize")
    for part in ("w", "b"):
        resized = resize_rows(tensors[f"{case['index']}/old_{part}"], case["new_rows"])
        assert torch.equal(resized, tensors[f"{case['index']}/new_{part}"])


@pytest.mark.parametrize("rows", [3, 8, 91, 120])
def test_a_resized_model_repeats_the_rows_of_all_its_class_heads(rows):
    model = RFDETRNano(pretrain_weights=None, num_classes=4, group_detr=2, device="cpu").model
    heads = [model.model.class_head, model.model.proposals.classes]
    for head in heads:
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
    before = [head.weight.detach().clone() for head in heads], [head.bias.detach().clone() for head in heads]
    model.reinitialize_detection_head(rows)
    index = np.arange(rows) % 5
    assert torch.equal(model.model.class_head.weight, before[0][0][index])
    assert torch.equal(model.model.class_head.bias, before[1][0][index])
    assert torch.equal(model.model.proposals.classes.weight, before[0][1][:, index])
    assert torch.equal(model.model.proposals.classes.bias, before[1][1][:, index])
    assert model.config.num_classes == rows - 1


@pytest.mark.filterwarnings("ignore:.*how its queries are grouped:UserWarning")
@pytest.mark.parametrize("case", read_json("training/head_resize")["query_slices"])
def test_kept_query_rows_equal_the_recorded_ones(case):
    queries, groups = case["checkpoint_queries"], case["checkpoint_groups"]
    table = torch.arange(queries * groups).view(-1, 1)
    wanted = case["model_queries"], case["model_groups"]
    assert fit_queries(table, *wanted, queries, groups).flatten().tolist() == case["kept_rows"]
    # Either number follows from the other and the rows.
    assert fit_queries(table, *wanted, queries, None).flatten().tolist() == case["kept_rows"]
    assert fit_queries(table, *wanted, None, groups).flatten().tolist() == case["kept_rows"]
    assert fit_queries(table, *wanted, None, None).flatten().tolist() == case["flat_slice_rows"]
