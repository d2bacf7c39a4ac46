"""The table of tensor names on incomplete and foreign input; round trips stand in tests/parity/test_network.py."""

from __future__ import annotations

import pytest
import torch

from rfdetr.checkpoints.names import KEYPOINT_MASK, TABLE, internal_name, published_names, to_internal, to_published

ATTENTION = "backbone.0.encoder.encoder.encoder.layer.3.attention.attention"


def test_no_two_rows_share_a_name():
    assert len({published for published, _ in TABLE}) == len(TABLE)
    assert len({internal for _, internal in TABLE}) == len(TABLE)


def test_every_name_below_a_row_finds_its_row_in_both_directions():
    for published, internal in TABLE:
        rest = "weight" if internal.endswith((".", "_")) else ""
        ours = internal.format(i=1, j=0) + rest
        for name in published_names(ours, 2):
            assert internal_name(name)[0] == ours, published


@pytest.mark.parametrize("name", ["", "fc.weight", "transformer.decoder.layers.x.norm1.weight", "Class_embed.bias"])
def test_foreign_names_are_told(name):
    assert to_internal({name: torch.zeros(1), KEYPOINT_MASK: torch.zeros(0, 0)}) == ({}, [name])


def test_a_name_that_no_file_can_carry_is_an_error():
    with pytest.raises(KeyError, match="criterion"):
        to_published({"criterion.weight": torch.zeros(1)})


def test_all_missing_parts_of_joined_tensors_are_named():
    tensors = {f"{ATTENTION}.key.bias": torch.zeros(2)}
    tensors |= {f"transformer.enc_output.{group}.bias": torch.zeros(2) for group in (0, 2)}
    with pytest.raises(ValueError) as raised:
        to_internal(tensors)
    missing = (f"{ATTENTION}.query.bias", f"{ATTENTION}.value.bias", "transformer.enc_output.1.bias")
    assert str(raised.value) == ", ".join(f"{name} is missing" for name in missing)


def test_groups_are_stacked_in_the_order_of_their_numbers():
    tensors = {
        f"transformer.enc_output.{group}.bias": torch.full((2,), float(group)) for group in (2, 10, 0, *range(3, 10), 1)
    }
    joined = to_internal(tensors)[0]["proposals.embed.bias"]
    assert joined[:, 0].tolist() == list(range(11))
