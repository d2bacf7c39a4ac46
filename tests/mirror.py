"""What a mirrored picture does to a target, for the tests that compare with it."""

from __future__ import annotations

from collections.abc import Sequence

from rfdetr.datasets.geometry import Target, shift_and_scale, warp_target


def mirror_target(target: Target, width: int, flip_pairs: Sequence[int] = ()) -> Target:
    """A target mirrored left to right in a picture of this width; `flip_pairs`: see `warp_target`."""
    hw = int(target["size"][0]), width
    return warp_target(target, shift_and_scale(width, 0, -1, 1), hw, whole=True, flip_pairs=flip_pairs)
