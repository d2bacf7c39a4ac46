"""Predictions of a whole source, one after another and never more than a batch in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from rfdetr.inference.images import load_image, to_uint8
from rfdetr.inference.sources import Frame, Source, open_source


class Prediction(NamedTuple):
    """What was found in one picture of a source.

    Args:
        name, index, seconds: those of `rfdetr.inference.sources.Frame`.
        picture: the (H, W, 3) uint8 RGB array that was looked at.
        result: `supervision.Detections`, or of keypoint models `supervision.KeyPoints`.
    """

    name: str
    index: int
    seconds: float | None
    picture: np.ndarray
    result: Any


def predict_stream(
    model: Any, source: Any, *, batch_size: int = 1, stride: int = 1, progress: bool = False, **options: Any
) -> Generator[Prediction]:
    """Find objects in every picture of a source, which is opened now, and read as far as results are asked for.

    Args:
        model: anything with `predict`.
        source: see `rfdetr.inference.sources.open_source`; it is closed at the end, and when the generator is.
        batch_size: pictures per forward pass; live sources are looked at one by one.
        stride: every n-th frame is looked at.
        progress: show a bar on stderr.
        options: those of `predict`.

    Raises:
        FileNotFoundError, ValueError, TypeError, ConnectionError: the source cannot be opened.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    opened = open_source(source, stride=stride)
    found = _predict(model, opened, 1 if opened.is_live else batch_size, options)
    return _with_bar(found, opened) if progress else found


def _with_bar(found: Generator[Prediction], source: Source) -> Generator[Prediction]:
    unit = "frame" if source.is_video else "picture"
    with closing(found), tqdm(total=source.count, unit=unit, file=sys.stderr) as bar:
        for one in found:
            yield one
            bar.update()


def _predict(model: Any, source: Source, batch_size: int, options: dict[str, Any]) -> Generator[Prediction]:
    frames, error = iter(source), None
    # Of a single picture, what is fastest is left to `predict`: with tiles it is several for one picture.
    options = {"batch_size": batch_size, **options} if batch_size > 1 else options
    with source:
        while error is None:
            batch, error = _pull(frames, batch_size)
            if not batch:
                break
            results = model.predict([pixels for _, pixels in batch], **options)
            for (frame, pixels), result in zip(batch, results, strict=True):
                yield Prediction(frame.name, frame.index, frame.seconds, to_uint8(pixels), result)
    if error is not None:
        raise error


def _pull(frames: Iterator[Frame], count: int) -> tuple[list[tuple[Frame, np.ndarray]], Exception | None]:
    """The next frames of a source and their pixels, and the error that ended them: those before it still count."""
    batch: list[tuple[Frame, np.ndarray]] = []
    try:
        batch.extend((frame, _pixels(frame)) for frame in islice(frames, count))
    except Exception as error:  # raised again once they are done
        return batch, error
    return batch, None


def _pixels(frame: Frame) -> np.ndarray:
    """The picture (H, W, 3), uint8 or float32 in 0..1, decoded once for the network and for the eye."""
    is_named = isinstance(frame.picture, str | os.PathLike)
    return load_image(frame.picture, "the picture" if is_named else frame.name)
