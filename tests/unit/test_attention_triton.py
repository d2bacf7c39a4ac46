"""Deformable attention in Triton against PyTorch's operators, on the CPU by Triton's interpreter.

Triton decides at import whether it interprets, so the functions named check_* are the tests of a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdetr.models.attention import DeformableAttention, is_available

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.slow
@needs_triton
def test_the_kernels_agree_with_the_plain_operators():
    command = [sys.executable, "-m", "pytest", __file__, "-o", "python_functions=check_*", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**environment, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plain_operators_read_on_a_cpu_and_triton_stays_unloaded():
    code = (
        "import sys, torch\n"
        "from rfdetr.models.attention import DeformableAttention, is_available\n"
        "attention = DeformableAttention(8, 2, 1, 2)\n"
        "attention(torch.rand(1, 3, 8), torch.rand(1, 3, 4), torch.rand(1, 4, 8), [(2, 2)])\n"
        "assert not is_available('cpu') and 'triton' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


class Constant(torch.nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.tensor = tensor

    def forward(self, _):
        return self.tensor


class Case:
    """Random inputs of `read_memory`, and what the plain operators make of them."""

    def __init__(
        self, shapes, heads=1, width=4, points=2, queries=3, batch=1, ratios=False, dtype=torch.float32, seed=0
    ):
        random = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(*size, generator=random, dtype=torch.float64).to(dtype)

        self.shapes, self.heads, columns = shapes, heads, heads * len(shapes) * points
        self.value = normal(batch, sum(height * width for height, width in shapes), heads * width)
        self.offsets, self.logits = normal(batch, queries, columns * 2) * 2, normal(batch, queries, columns)
        # Centres in and around the picture, sizes up to all of it.
        boxes = torch.rand(batch, queries, 4, generator=random, dtype=torch.float64)
        self.reference = torch.cat((boxes[..., :2] * 1.4 - 0.2, boxes[..., 2:]), -1).to(dtype)
        share = torch.rand(batch, len(shapes), 2, generator=random, dtype=torch.float64)
        self.ratios = (share / 2 + 0.5).to(dtype) if ratios else None
        self.grad = normal(batch, queries, heads * width)

    def inputs(self):
        return self.value, self.offsets, self.logits, self.reference

    def fused(self, inputs):
        from rfdetr.models.attention_triton import read_memory

        return read_memory(*inputs, self.shapes, self.ratios, self.heads)

    def plain(self, inputs):
        """The module, its linear layers replaced."""
        value, offsets, logits, reference = inputs
        points = logits.shape[-1] // self.heads // len(self.shapes)
        module = DeformableAttention(value.shape[-1], self.heads, len(self.shapes), points)
        module.fused, module.offsets, module.weights = False, Constant(offsets), Constant(logits)
        module.value, module.output = torch.nn.Identity(), torch.nn.Identity()
        return module(offsets, reference, value, self.shapes, None, self.ratios)

    def results(self, read, wanted=(True, True, True, True)):
        """What was read, and the gradients of the inputs that want one."""
        inputs = [one.clone().requires_grad_(want) for one, want in zip(self.inputs(), wanted, strict=True)]
        found = read(inputs)
        leaves = [one for one in inputs if one.requires_grad]
        return found.detach(), *torch.autograd.grad(found, leaves, self.grad.to(found.dtype))


@pytest.fixture
def in_order():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_near(found, wanted, tolerance):
    """Differences are shares of the largest entry."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        largest = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=tolerance * largest)


CASES = {
    "several heads and pictures": {"shapes": [(3, 5)], "heads": 2, "batch": 2},
    "three levels of padded pictures": {"shapes": [(3, 5), (2, 3), (1, 1)], "batch": 2, "points": 1, "ratios": True},
    "channels, points and heads that are no power of two": {"shapes": [(4, 3)], "width": 6, "points": 3, "heads": 3},
    "more queries than a block": {"shapes": [(6, 7)], "queries": 33},
    "the most levels and points": {"shapes": [(2, 2)] * 4, "points": 8},
    "one of each": {"shapes": [(2, 3)], "points": 1, "queries": 1, "width": 1},
}
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("name", CASES)
def check_gradients(name):
    case = Case(**CASES[name])
    assert_near(case.results(case.fused), case.results(case.plain), TOLERANCES[torch.float32])


def check_gradients_in_double_precision():
    case = Case(**CASES["three levels of padded pictures"], dtype=torch.float64)
    assert_near(case.results(case.fused), case.results(case.plain), TOLERANCES[torch.float64])


@pytest.mark.parametrize("name", ["several heads and pictures", "three levels of padded pictures"])
def check_gradients_in_a_fixed_order(name, in_order):
    case = Case(**CASES[name])
    found = case.results(case.fused)
    assert all(map(torch.equal, found, case.results(case.fused)))
    assert_near(found, case.results(case.plain), TOLERANCES[torch.float32])


@given(data=st.data())
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
def check_random_inputs(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    shapes = [(draw(1, 9), draw(1, 9)) for _ in range(draw(1, 2))]
    sizes = {"heads": draw(1, 2), "width": draw(1, 20), "points": draw(1, 3), "queries": draw(1, 40)}
    case = Case(shapes, **sizes, batch=1, ratios=data.draw(st.booleans()), seed=draw(0, 1000))
    torch.use_deterministic_algorithms(data.draw(st.booleans()))
    try:
        assert_near(case.results(case.fused), case.results(case.plain), TOLERANCES[torch.float32])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def check_half_precision_rounds_only_results(dtype):
    """Also where, as under autocast, the boxes are float32."""
    half, whole = Case([(3, 5)], heads=2, ratios=True, dtype=dtype), Case([(3, 5)], heads=2, ratios=True)
    half.reference, half.ratios = whole.reference, whole.ratios
    whole.value, whole.offsets, whole.logits = half.value.float(), half.offsets.float(), half.logits.float()
    whole.grad = half.grad.float()
    found, wanted = half.results(half.fused), whole.results(whole.plain)
    assert [one.dtype for one in found] == [dtype, dtype, dtype, dtype, torch.float32]
    # The interpreter cuts off where a GPU rounds to nearest.
    assert_near(found[:4], wanted[:4], torch.finfo(dtype).eps)
    assert_near(found[4:], wanted[4:], TOLERANCES[torch.float32])


@pytest.mark.parametrize("wanted", [(True, True, True, False), (False, True, True, True), (True, False, False, False)])
def check_a_gradient_does_not_depend_on_which_others_are_wanted(wanted):
    case = Case([(3, 5)])
    assert_near(case.results(case.fused, wanted), case.results(case.plain, wanted), TOLERANCES[torch.float32])


@pytest.mark.parametrize("strange", [7.0, -1e30, float("inf"), float("nan")])
def check_places_outside_are_read_as_zero(strange):
    case = Case([(3, 5)], queries=2)
    case.reference[:, 1, :2] = strange
    read, of_value, *others = case.results(case.fused)
    assert not read[:, 1].any() and read[:, 0].any()
    assert all(not one[:, 1].any() for one in others)
    # The other query's boxes are ordinary.
    case.reference[:, 1, :2] = 7.0
    assert_near((read, of_value), case.results(case.plain)[:2], TOLERANCES[torch.float32])


@pytest.mark.parametrize("empty", [{"queries": 0}, {"batch": 0}])
def check_nothing_to_read(empty):
    case = Case([(3, 5)], **empty)
    read, *gradients = case.results(case.fused)
    assert read.shape == case.grad.shape
    assert all(one.shape == given.shape and not one.any() for one, given in zip(gradients, case.inputs(), strict=True))


def check_tensors_may_have_any_strides():
    case = Case([(3, 5)], batch=2, points=1)
    spread = [one.transpose(0, 1).contiguous().transpose(0, 1) for one in case.inputs()]
    assert not any(one.is_contiguous() for one in spread)
    assert torch.equal(case.fused(spread), case.fused(case.inputs()))


def check_the_module_reads_the_same_either_way():
    assert is_available("cpu")
    shapes, random = [(3, 4), (2, 2)], torch.Generator().manual_seed(0)
    attention = DeformableAttention(8, 2, 2, 2)
    query, memory = torch.randn(2, 5, 8, generator=random), torch.randn(2, 16, 8, generator=random)
    boxes, padding = torch.rand(2, 5, 4, generator=random), torch.rand(2, 16, generator=random) < 0.3
    ratios = torch.rand(2, 2, 2, generator=random)
    results = []
    for attention.fused in (True, False):
        read = attention(query, boxes, memory, shapes, padding, ratios)
        results.append((read, *torch.autograd.grad(read.square().sum(), list(attention.parameters()))))
    assert_near(*results, 5e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def check_a_trace_holds_the_plain_operators():
    inputs = (torch.rand(1, 3, 8), torch.rand(1, 3, 4), torch.rand(1, 4, 8))

    class Fixed(DeformableAttention):
        def forward(self, *tensors):
            return super().forward(*tensors, [(2, 2)])

    attention = Fixed(8, 2, 1, 2)
    assert "grid_sampler" in str(torch.jit.trace(attention, inputs, check_trace=False).inlined_graph)
    assert "grid_sampler" in str(torch.export.export(attention, inputs).graph)
