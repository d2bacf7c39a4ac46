"""Ground truth masks in both forms: one plane per object, or eight objects to a plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rfdetr.models.masks import TargetMasks


@pytest.mark.parametrize("counts", [(3, 9, 0, 16), (0, 0), (1,), (8, 17)])
def test_packed_masks_read_like_planes_and_like_a_loop(counts):
    random = torch.Generator().manual_seed(0)
    dense = [torch.rand(count, 13, 10, generator=random) < 0.5 for count in counts]
    packed = [torch.from_numpy(np.packbits(one.numpy(), axis=0, bitorder="little")) for one in dense]
    whole = torch.cat(dense)
    objects = torch.randint(len(whole), (20,), generator=random) if len(whole) else torch.zeros(0, dtype=torch.int64)
    points = torch.rand(len(objects), 30, 2, generator=random)
    column, row = (points[..., 0] * 10).long(), (points[..., 1] * 13).long()
    wanted = torch.stack([whole[o][r, c] for o, r, c in zip(objects, row, column, strict=True)]) if len(whole) else []
    for masks in (dense, packed):
        target = TargetMasks(masks, counts)
        found = target.look_up(objects, points)
        assert found.dtype == torch.float32
        assert found.bool().tolist() == (wanted.tolist() if len(whole) else [])
        shared = torch.rand(1, 7, 2, generator=torch.Generator().manual_seed(1))
        for image, own in enumerate(dense):
            place = (slice(None), (shared[0, :, 1] * 13).long(), (shared[0, :, 0] * 10).long())
            assert torch.equal(target.look_up_image(image, shared).bool(), own[place])


def test_points_on_the_border_belong_to_the_last_pixel():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, -1, -1] = True
    corner = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert TargetMasks([masks], [1]).look_up(torch.tensor([0]), corner).tolist() == [[1.0, 0.0]]
