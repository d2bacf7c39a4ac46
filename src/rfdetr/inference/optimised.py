"""The network prepared for prediction alone: in a precision of its own, and on a GPU as captured graphs."""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.log import logger
from rfdetr.models.detector import Detector

Outputs = dict[str, Tensor]
# Input shapes whose graphs are kept; the one that was not used for longest goes first.
KEPT_GRAPHS = 8
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def to_dtype(dtype: Any) -> torch.dtype:
    """A precision that the network can run in, from itself or its name.

    Raises:
        TypeError: something else than a dtype or a text.
        ValueError: another dtype.
    """
    if not isinstance(dtype, torch.dtype | str):
        raise TypeError(f"dtype={dtype!r} must be a torch.dtype or its name")
    found = _FLOATS.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found is None or found not in _FLOATS.values():
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(_FLOATS)}")
    return found


class InPrecision(nn.Module):
    """A part of the network in another precision, which takes and gives float32."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part, dtype

    def forward(self, given: Tensor | list[Tensor]) -> list[Tensor]:
        """Images or maps in, maps out."""
        inputs = given.to(self.dtype) if isinstance(given, Tensor) else [one.to(self.dtype) for one in given]
        return [one.float() for one in self.part(inputs)]


def in_precision(network: Detector, dtype: torch.dtype) -> Detector:
    """The network with encoder and projectors, nine tenths of its work, copied to another precision.

    The decoder, the heads and the choice of queries stay as they are, and shared: they decide about places and order.
    """
    found = copy.copy(network)
    found._modules = dict(network._modules)
    found.encoder, found.projector = (_converted(part, dtype) for part in (network.encoder, network.projector))
    if network.keypoints is not None:
        found.keypoints = copy.copy(network.keypoints)
        found.keypoints._modules = dict(network.keypoints._modules)
        found.keypoints.projector = _converted(network.keypoints.projector, dtype)
    return found


def _converted(part: nn.Module, dtype: torch.dtype) -> Any:
    # Also when it is made anew in the middle of a prediction its tensors are usual ones, which have versions.
    with torch.inference_mode(False):
        return InPrecision(copy.deepcopy(part).requires_grad_(False).to(dtype), dtype)


def is_faster(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies faster in a precision than in float32, which without special units it does not."""
    seconds = {}
    for kind in (torch.float32, dtype):
        rows, weight = torch.ones(512, 384, dtype=kind), torch.ones(1536, 384, dtype=kind)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            F.linear(rows, weight)
            times.append(time.perf_counter() - start)
        seconds[kind] = min(times)
    return seconds[dtype] < seconds[torch.float32]


class Optimised:
    """A network called with images (B, 3, H, W), of any number and shape, for its last layer alone.

    Args:
        network: the network of a model, in eval mode on its device.
        dtype: the precision of its encoder and projectors.
        graphs: capture a CUDA graph for each input shape, instead of launching every kernel again for each picture.
    """

    def __init__(self, network: Detector, dtype: torch.dtype, graphs: bool) -> None:
        self.dtype, self.graphs = dtype, graphs
        self.network = network if dtype == torch.float32 else in_precision(network, dtype)
        self._weights: tuple[tuple[int, int], ...] = fingerprint(network)
        self._captured: OrderedDict[tuple[int, ...], Callable[[Tensor], Outputs]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "graphs": self.graphs, "network": self.network}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # In another process, or of a copy, nothing is captured, and the weights are others by their identity.
        self._weights, self._captured, self._lock = (), OrderedDict(), threading.Lock()

    def is_of(self, network: Detector) -> bool:
        """Whether it computes what the network does, whose weights may have been written to since."""
        return self._weights == fingerprint(network)

    @torch.inference_mode()
    def __call__(self, images: Tensor, **_: bool) -> Outputs:
        """Outputs of the last layer; of a graph they are copies, which the next call leaves alone."""
        if not self.graphs:
            return self.network(images, last_only=True, whole_masks=False)
        with self._lock:
            replay = self._graph(images)
            if replay is not None:
                return {name: value.clone() for name, value in replay(images).items()}
        return self.network(images, last_only=True, whole_masks=False)

    def _graph(self, images: Tensor) -> Callable[[Tensor], Outputs] | None:
        shape = tuple(images.shape)
        if shape in self._captured:
            self._captured.move_to_end(shape)
            return self._captured[shape]
        try:
            self._captured[shape] = capture(self.network, images)
        except RuntimeError as error:
            # The network itself works; without graphs it is as fast as before.
            warnings.warn(f"no CUDA graph could be captured, so predict() goes on without: {error}", stacklevel=7)
            self.graphs = False
            self._captured.clear()
            return None
        logger.debug("captured a graph for inputs of %s", shape)
        while len(self._captured) > KEPT_GRAPHS:
            self._captured.popitem(last=False)
        return self._captured[shape]


def capture(network: Detector, images: Tensor) -> Callable[[Tensor], Outputs]:
    """Record what the network does with inputs of a shape, and return what does it again with others.

    Raises:
        RuntimeError: CUDA refuses.
    """
    given = images.clone()

    def run() -> Outputs:
        # Masks of every query: what is computed later is no part of a graph.
        return network(given, last_only=True, whole_masks=True)

    # Constants of the shape are made, and kernels chosen, before anything is recorded.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay(images: Tensor) -> Outputs:
        given.copy_(images)
        graph.replay()
        return outputs

    return replay


def optimise(network: Detector, dtype: torch.dtype, use_graphs: bool, example: Tensor) -> Optimised:
    """Prepare a network, and run it once with images of the first expected shape, so that what fails does so now.

    Raises:
        RuntimeError: the network does not run in this precision on this device; nothing has changed then.
    """
    on_cpu = example.device.type == "cpu"
    if on_cpu and dtype != torch.float32 and not is_faster(dtype):
        warnings.warn(f"this CPU is slower in {dtype} than in float32, so predict() stays in float32", stacklevel=4)
        dtype = torch.float32
    made = Optimised(network, dtype, use_graphs and not on_cpu)
    made(example)
    if not on_cpu and dtype != torch.float32:
        # Their copies are on the device now; they wait in main memory until something else than predict() needs them.
        for part in (network.encoder, network.projector, getattr(network.keypoints, "projector", None)):
            if part is not None:
                part.to("cpu")
    return made


def fingerprint(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is replaced or written to."""
    return tuple((id(parameter), parameter._version) for parameter in network.parameters())
