"""Exported files, opened to predict and to be judged like the models they were made of. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.network_input import to_network_size
from rfdetr.export.files import Runtime, format_of, module_of
from rfdetr.export.metadata import Facts, from_metadata
from rfdetr.inference.decode import Found, decode
from rfdetr.inference.predictor import Predictor
from rfdetr.inference.sv import preload

# What a raw file gives, and what a final one does, besides what its task adds.
_RAW, _FINAL = ("dets", "labels"), ("boxes", "scores", "classes")
_MORE = {
    "detect": ((), ()),
    "segment": (("masks",), ("masks",)),
    "keypoints": (("keypoints",), ("keypoints", "precision")),
}


class FileRunner:
    """An exported file that finds objects in pictures (`rfdetr.inference.predictor.Runner`)."""

    patch_size = None

    def __init__(self, runtime: Runtime, facts: Facts) -> None:
        self.runtime, self.facts, self.labels = runtime, facts, facts.labels
        self.has_masks, self.hw = facts.task == "segment", facts.hw
        # The input of a file has one size.
        self.block = 1
        self.chunk = runtime.shape[0] or 8

    def check_size(self, hw: tuple[int, int]) -> None:
        """ValueError for another size than the file's."""
        if hw != self.hw:
            raise ValueError(f"shape={hw}: the file takes inputs of {self.hw} alone; export the model at that shape")

    def detect(self, pictures: Sequence[np.ndarray], hw: tuple[int, int], threshold: float) -> list[Found]:
        """See `Runner`."""
        results: list[Found] = []
        step = self.runtime.shape[0] or len(pictures)
        for start in range(0, len(pictures), step):
            part = pictures[start : start + step]
            sizes = [(picture.shape[0], picture.shape[1]) for picture in part]
            results += self.read(self.compute(self.prepare(part, hw)), sizes, threshold)
        return results

    def prepare(self, pictures: Sequence[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
        """The network's input, (B, C, height, width); a file for more pictures than these gets black ones too."""
        images = np.zeros((self.runtime.shape[0] or len(pictures), pictures[0].shape[2], *hw), np.float32)
        for row, picture in zip(images, pictures, strict=False):
            row[:] = to_network_size(picture, hw, normalised=True)
        return images

    def compute(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The file's outputs."""
        return self.runtime.run(inputs)

    def read(self, outputs: dict[str, np.ndarray], sizes: Sequence[tuple[int, int]], threshold: float) -> list[Found]:
        """The detections in outputs for pictures of these heights and widths."""
        facts = self.facts
        if not facts.final:
            return decode(outputs, sizes, facts.num_select, threshold, facts.schema, facts.trace_alpha)
        return [_scaled({name: values[i] for name, values in outputs.items()}, hw) for i, hw in enumerate(sizes)]


def _scaled(one: dict[str, np.ndarray], hw: tuple[int, int]) -> Found:
    """Detections of a final graph in pixels of the picture."""
    size = np.array([hw[1], hw[0]], np.float32)
    found = {"scores": one["scores"], "labels": one["classes"], "boxes": one["boxes"] * np.tile(size, 2)}
    if "masks" in one:
        found["mask_logits"] = one["masks"]
    if "keypoints" in one:
        points = one["keypoints"]
        found["keypoints"] = np.concatenate((points[..., :2] * size, points[..., 2:]), axis=-1)
        found["keypoint_precision_cholesky"] = one["precision"]
    return found


class ExportedModel(Predictor):
    """A model in an exported file, with the `predict`, `predict_stream` and `evaluate` of the model it was made of.

    Args:
        path: a file that `export()` has written: `.onnx`, `.xml`, `.trt`, `.mlpackage`, `.tflite`, `.pte`.
        device: where the runtime runs it, in its own words; None is the CPU, or what the file was made for.
        threads: that share one run; None is what the runtime chooses.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: its runtime is not installed; the message has the pip command.
        ValueError: it is no such file, has another input or other outputs, or says nothing about its classes.
    """

    def __init__(self, path: str | Path, *, device: str | None = None, threads: int | None = None) -> None:
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads={threads!r} must be a positive whole number")
        module = module_of(format_of(path))
        # Results need a package that is slow to import; it comes while the runtime prepares and runs the network.
        preload()
        self.path, self.runtime = path, module.Runtime(path, device, threads)
        self.facts = from_metadata(self.runtime.texts, path)
        _check_ports(self.runtime, self.facts, path)
        self.thresholds: dict[str, float] = dict(self.facts.labels.thresholds)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return list(self.facts.labels.class_names)

    @property
    def class_labels(self) -> list[int]:
        """The label of each class name."""
        return list(self.facts.labels.class_labels)

    def _runner(self) -> FileRunner:
        labels = self.facts.labels
        if self.thresholds != labels.thresholds:
            return FileRunner(self.runtime, replace(self.facts, labels=replace(labels, thresholds=self.thresholds)))
        return FileRunner(self.runtime, self.facts)

    def evaluate(
        self,
        dataset_dir: str | Path | Sequence[str | Path] | None = None,
        *,
        split: str = "test",
        report_dir: str | Path | None = None,
        resolution: int | None = None,
        **options: Any,
    ) -> dict[str, float]:
        """COCO metrics of the file on one split, as `RFDETR.evaluate` gives them for the model.

        Args:
            resolution: that of the file, if given.

        Raises:
            ValueError: options that the file was not made for, or classes that it does not know by name.
            FileExistsError: `report_dir` holds something else than an earlier report.
        """
        from rfdetr.export.judged import judge

        return judge(self, dataset_dir, split, report_dir, resolution, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.runtime.about})"


def _check_ports(runtime: Runtime, facts: Facts, path: Path) -> None:
    """ValueError if a file takes or gives something else than its metadata say; sizes it does not tell are trusted."""
    hw = runtime.shape[2:]
    if hw != facts.hw:
        raise ValueError(f"{path} takes inputs of {hw}, but its metadata say {facts.hw}; write it again")
    wanted = (_FINAL if facts.final else _RAW) + _MORE[facts.task][facts.final]
    shapes = runtime.outputs
    if missing := [name for name in wanted if name not in shapes]:
        raise ValueError(f"{path} has the outputs {shapes} and lacks {', '.join(missing)}; write it with export()")
    rows = (None, None) if facts.final else (None, None, facts.labels.count)
    if not all(_fits(shapes[name], sizes) for name, sizes in zip(wanted, ((None, None, 4), rows), strict=False)):
        raise ValueError(
            f"{path} has the outputs {shapes}; {wanted[0]} (B, Q, 4) and {wanted[1]} "
            f"{'(B, Q)' if facts.final else f'(B, Q, {facts.labels.count})'} are needed"
        )


def _fits(shape: tuple[int | None, ...] | None, wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape can be the wanted one; None is anything."""
    if shape is None:
        return True
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(a is None or b is None or a == b for a, b in pairs)
