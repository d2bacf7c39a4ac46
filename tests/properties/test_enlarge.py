"""Masks enlarged where they can be true, compared with the enlarged whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rfdetr.models.enlarge import cut_outs
from rfdetr.models.postprocess import enlarge


def interpolate(logits: Tensor, hw: tuple[int, int]) -> Tensor:
    """Logits (K, h, w) of every pixel, (K, H, W)."""
    return F.interpolate(logits[:, None], hw, mode="bilinear", align_corners=False)[:, 0]


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    cells=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    hw=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    shift=st.sampled_from([-3.0, -2.0, -1.0, 0.0, 3.0]),
)
def test_equal_to_the_enlarged_whole(seed, cells, hw, shift):
    logits = torch.randn(3, *cells, generator=torch.Generator().manual_seed(seed)) + shift
    whole = interpolate(logits, hw)
    masks = enlarge(logits, hw)[:, 0]
    assert masks.shape == (3, *hw)
    assert not ((masks != (whole > 0)) & (whole.abs() > 1e-5)).any()


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), hw=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_a_cut_out_reaches_at_most_one_cell_beyond_the_cells_above_zero(seed, hw):
    logits = torch.randn(4, 6, 7, generator=torch.Generator().manual_seed(seed)) - 1.5
    for one, (top, left, mask) in zip(logits, cut_outs(logits.numpy(), hw), strict=True):
        rows, columns = torch.nonzero(one > 0, as_tuple=True)
        if not len(rows):
            assert mask.size == 0
            continue
        for start, length, true, cells, pixels in (
            (top, mask.shape[0], rows, 6, hw[0]),
            (left, mask.shape[1], columns, 7, hw[1]),
        ):
            assert (start + 0.5) * cells / pixels >= true.min() - 0.5 - 1e-5 or start == 0
            assert (start + length - 0.5) * cells / pixels <= true.max() + 1.5 + 1e-5 or start + length == pixels


def test_a_size_of_its_own_leaves_a_mask_as_it_is():
    logits = torch.randn(5, 20, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(enlarge(logits, (20, 24))[:, 0], logits > 0)


def test_broken_and_half_precision_logits_are_enlarged_too():
    logits = torch.full((1, 8, 8), float("nan"))
    assert not enlarge(logits, (30, 40)).any()
    logits = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(enlarge(logits, (30, 40))[:, 0], interpolate(logits.float(), (30, 40)) > 0)


@pytest.mark.parametrize("count", [0, 2])
def test_masks_without_a_true_pixel_have_the_size_of_the_picture(count):
    masks = enlarge(torch.full((count, 8, 8), -1.0), (30, 40))
    assert (masks.dtype, masks.shape) == (torch.bool, (count, 1, 30, 40))
    assert not masks.any()
    assert [mask.shape for _, _, mask in cut_outs(np.full((count, 8, 8), -1.0, np.float32), (30, 40))] == [
        (0, 0)
    ] * count


def test_what_is_enlarged_for_one_picture_serves_the_next_in_or_out_of_inference_mode():
    logits = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first = enlarge(logits, (31, 37))
    assert np.array_equal(first.numpy(), enlarge(logits, (31, 37)).numpy())
