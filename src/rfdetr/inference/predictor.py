"""`predict` for everything that can find objects, whatever runs the network. Imports no PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from rfdetr.inference.decode import Found
from rfdetr.inference.images import load_images
from rfdetr.inference.masks import check_format
from rfdetr.inference.results import select, to_result
from rfdetr.inference.stream import Prediction, predict_stream
from rfdetr.inference.suppress import one_label_each, suppress
from rfdetr.inference.tiles import check_tile, cut, merge
from rfdetr.labels import DEFAULT_THRESHOLD, Labels

HW = tuple[int, int]


class Runner(Protocol):
    """What finds objects in pictures: a network in PyTorch, or an exported file."""

    @property
    def labels(self) -> Labels:
        """The classes of its model."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether the network finds masks."""
        ...

    @property
    def hw(self) -> HW:
        """The usual height and width of its input."""
        ...

    @property
    def block(self) -> int:
        """Sides of inputs are multiples of it."""
        ...

    @property
    def patch_size(self) -> int | None:
        """Side of its patches; None if nobody knows."""
        ...

    @property
    def chunk(self) -> int:
        """Pictures that it takes at once as a rule."""
        ...

    def check_size(self, hw: HW) -> None:
        """ValueError if the network cannot take inputs of this height and width."""

    def detect(self, pictures: Sequence[np.ndarray], hw: HW, threshold: float) -> list[Found]:
        """Detections of pictures that are resized to a height and width; what scores lower may be left out."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What is reported of the detections of a picture."""

    limits: float | list[float]
    names: list[str]
    hidden: Sequence[int]
    nms: float | None
    one_label: bool
    mask_format: str

    @property
    def lowest(self) -> float:
        """The lowest threshold of any class."""
        return self.limits if isinstance(self.limits, float) else min(self.limits)

    def chosen(self, found: Found) -> Found:
        """The detections that are above the threshold, each query once if that is wanted."""
        found = select(found, self.limits, self.hidden)
        return one_label_each(found) if self.one_label else found


class Predictor:
    """Gives a class that has a runner `predict` and `predict_stream`."""

    def _runner(self) -> Runner:
        raise NotImplementedError

    @property
    def has_masks(self) -> bool:
        """Whether the model finds masks."""
        return self._runner().has_masks

    def predict(
        self,
        images: Any,
        threshold: float | str | Mapping[str, float] = DEFAULT_THRESHOLD,
        shape: Sequence[int] | None = None,
        patch_size: int | None = None,
        include_source_image: bool = True,
        *,
        resolution: int | Sequence[int] | None = None,
        mask_format: str = "dense",
        batch_size: int | None = None,
        nms: float | None = None,
        one_label_per_box: bool = False,
        tile: int | Sequence[int] | None = None,
        overlap: float = 0.2,
    ) -> Any:
        """Find objects. Calls from several threads at once are safe.

        Args:
            images: a path, URL, bytes, file, PIL image, array (H, W, 3) or tensor (3, H, W), RGB, or a list, batch or
                iterator of them, or a folder of pictures. Numbers are uint8, or floats in 0..1.
            threshold: detections with a score above it are returned; a dict gives some classes their own by name, the
                others 0.5; "auto" takes the ones with the best F1 of `evaluate()` or of the training's validation.
            shape: height and width of the network input, multiples of patch size x windows; default the resolution.
            patch_size: must be the model's, if given.
            include_source_image: keep the picture in `metadata["source_image"]`, for keypoints in `data`.
            resolution: the same as `shape`; one number is a square.
            mask_format: "dense" gives masks as `mask`; in less memory "rle" as `data["rle"]`, like COCO's files, and
                "polygon" as `data["polygons"]`.
            batch_size: pictures, or tiles, per forward pass; default what is fastest on the device.
            nms: leave out boxes that overlap a better one of their class by more than this (intersection over union).
            one_label_per_box: keep only the best class of a box.
            tile: height and width, or one number, of the overlapping pieces that large pictures are searched in, in
                pixels of the picture; each is resized to the network input. The picture as a whole is searched too.
            overlap: part of a tile that its neighbours repeat, 0 to 0.9.

        Returns:
            `supervision.Detections` with boxes in pixels of the picture, best first, or of keypoint models
            `supervision.KeyPoints`, in the order of their class scores before the keypoints change them; a list of them
            for more than one picture.

        Raises:
            TypeError, ValueError: a picture or an option that cannot be used; the message says what can.
            FileNotFoundError, PIL.UnidentifiedImageError: a file that is missing or damaged.
        """
        runner = self._runner()
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1
        ):
            raise ValueError(f"batch_size={batch_size!r} must be a positive whole number")
        if patch_size is not None and patch_size != runner.patch_size:
            raise ValueError(f"patch_size={patch_size} is not the model's, {runner.patch_size}")
        if nms is not None and (isinstance(nms, bool) or not isinstance(nms, Real) or not 0 <= nms <= 1):
            raise ValueError(f"nms={nms!r} must be an intersection over union, 0 to 1, or None")
        check_format(mask_format, runner.has_masks)
        hw = network_hw(shape, resolution, runner)
        sides = check_tile(tile, overlap)
        pictures, single = load_images(images)
        labels, size = runner.labels, batch_size or runner.chunk
        limits = labels.limits(threshold)
        wanted = Wanted(limits, labels.names(), labels.hidden, nms, one_label_per_box, mask_format)
        results = []
        while chunk := list(itertools.islice(pictures, 1 if sides else size)):
            if sides:
                results.append(_in_tiles(runner, chunk[0], hw, wanted, sides, overlap, size, include_source_image))
                continue
            for picture, found in zip(chunk, runner.detect(chunk, hw, wanted.lowest), strict=True):
                found = wanted.chosen(found)
                found = found if nms is None else suppress(found, nms)
                source = picture if include_source_image else None
                results.append(to_result(found, wanted.names, picture.shape[:2], source, mask_format))
        return results[0] if single else results

    def predict_stream(
        self, source: Any, *, batch_size: int = 1, stride: int = 1, progress: bool = False, **options: Any
    ) -> Iterator[Prediction]:
        """Find objects in the pictures of a source, one after the other, without holding more than a batch of them.

        Args:
            source: a video file, camera number, RTSP or HTTP address, picture, folder, pattern such as `"*.jpg"`, text
                file of paths, or an iterable of what `predict` takes.
            batch_size: pictures per forward pass.
            stride: take every n-th picture only.
            progress: show a progress bar.
            options: of `predict`.

        Returns:
            An iterator of `Prediction`: `name`, `index`, `seconds`, `picture` (H, W, 3) and `result`.

        Raises:
            TypeError, ValueError, OSError: the source cannot be opened; the message names it.
        """
        return predict_stream(self, source, batch_size=batch_size, stride=stride, progress=progress, **options)


def network_hw(shape: Any, resolution: Any, runner: Runner) -> HW:
    """Height and width of the network input that `predict` was asked for; by default the runner's.

    Raises:
        ValueError: both options were given, or a side is no positive multiple of the runner's block.
    """
    if shape is None and resolution is None:
        return runner.hw
    if shape is not None and resolution is not None:
        raise ValueError(f"shape={shape!r} and resolution={resolution!r} mean the same; give one of them")
    if isinstance(resolution, Integral) and not isinstance(resolution, bool):
        resolution = (resolution, resolution)
    hw = check_shape(shape, runner.block) if shape is not None else check_shape(resolution, runner.block, "resolution")
    runner.check_size(hw)
    return hw


def check_shape(shape: Any, block: int, what: str = "shape") -> HW:
    """A network input size (height, width) whose sides are positive multiples of `block`.

    Raises:
        ValueError: anything else; the message names the block.
    """
    sides = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if len(sides) != 2 or any(not isinstance(s, Integral) or s <= 0 or s % block for s in sides):
        raise ValueError(f"{what}={shape!r} must be (height, width), both multiples of {block} (patch size x windows)")
    return int(sides[0]), int(sides[1])


def _in_tiles(
    runner: Runner,
    picture: np.ndarray,
    hw: HW,
    wanted: Wanted,
    sides: HW,
    overlap: float,
    batch_size: int,
    include_source_image: bool,
) -> object:
    """Detections of one picture that is searched in tiles."""
    whole = picture.shape[0], picture.shape[1]
    tiles = cut(whole, sides, overlap)
    found: list[Found] = []
    for start in range(0, len(tiles), batch_size):
        views = [picture[top : top + h, left : left + w] for top, left, h, w in tiles[start : start + batch_size]]
        found += [wanted.chosen(one) for one in runner.detect(views, hw, wanted.lowest)]
    merged, parts = merge(tiles, found, whole)
    if wanted.nms is not None:
        number = {"row": np.arange(len(merged["scores"]))}
        merged = suppress({**merged, **number}, wanted.nms)
        rows = merged.pop("row")
        parts = None if parts is None else [parts[row] for row in rows]
    source = picture if include_source_image else None
    return to_result(merged, wanted.names, whole, source, wanted.mask_format, parts)
