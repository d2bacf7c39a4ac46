"""What the network sees of a picture: the recorded input tensor, whatever form the picture was given in."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tests.vectors import PICTURES, assert_close, read_arrays, read_json
from torch import Tensor, nn

from rfdetr import RFDETRNano
from rfdetr.datasets.network_input import to_network_size
from rfdetr.datasets.transforms import normalise, resize_on_device
from rfdetr.inference.images import load_images

META = read_json("inference/preprocess")
CASES = {case["key"]: case for case in META["cases"]}
ARRAYS = read_arrays("inference/preprocess")
# Another float32 order of the same sums; an antialiased resize is off by 0.017 and more.
TOLERANCE = 5e-5


@functools.cache
def pixels(name: str) -> np.ndarray:
    return np.array(Image.open(PICTURES / name).convert("RGB"))


FORMS = {
    # form: a picture file in this form
    "path": lambda name: str(PICTURES / name),
    "Path": lambda name: PICTURES / name,
    "bytes": lambda name: (PICTURES / name).read_bytes(),
    "file": lambda name: io.BytesIO((PICTURES / name).read_bytes()),
    "pil": lambda name: Image.open(PICTURES / name),
    "uint8 array": pixels,
    "reversed view": lambda name: pixels(name)[:, :, ::-1].copy()[:, :, ::-1],
    "float32 array": lambda name: pixels(name).astype(np.float32) / 255,
    "float32 tensor": lambda name: torch.from_numpy(pixels(name)).permute(2, 0, 1).float() / 255,
    "float64 tensor": lambda name: torch.from_numpy(pixels(name)).permute(2, 0, 1).double() / 255,
    "uint8 tensor": lambda name: torch.from_numpy(pixels(name)).permute(2, 0, 1),
}


def prepare(image: object, hw: tuple[int, int]) -> Tensor:
    """One picture as `predict` prepares it: (3, H, W)."""
    (picture,), single = load_images(image)
    assert single
    return torch.from_numpy(to_network_size(picture, hw, normalised=True))


@functools.cache
def from_path(name: str, hw: tuple[int, int]) -> Tensor:
    return prepare(PICTURES / name, hw)


@pytest.mark.parametrize("key", CASES)
def test_input_tensor_equals_the_recorded_one(key):
    case = CASES[key]
    tensor = prepare(PICTURES / case["image"], tuple(case["tensor_shape"][1:]))
    assert list(tensor.shape) == case["tensor_shape"]
    assert_close(tensor.reshape(-1)[:: case["stride"]], ARRAYS[key], key, TOLERANCE)
    exact = tensor.double().flatten(1)
    moments = {"mean": exact.mean(1), "std": exact.std(1, correction=0), "min": exact.amin(1), "max": exact.amax(1)}
    for name, value in moments.items():
        assert_close(value, case[name], name, TOLERANCE)
    for name, row in (("first_row_8", tensor[:, 0, :8]), ("last_row_8", tensor[:, -1, -8:])):
        assert_close(row.reshape(-1), case[name], name, TOLERANCE)


@pytest.mark.parametrize("key", CASES)
def test_a_device_computes_the_same_bits(key):
    picture, hw = pixels(CASES[key]["image"]), tuple(CASES[key]["tensor_shape"][1:])
    for image in (picture, picture.astype(np.float32) / np.float32(255)):
        relative = resize_on_device(torch.from_numpy(image), hw)
        assert np.array_equal(relative.numpy(), to_network_size(image, hw))
        assert torch.equal(normalise(relative[None])[0], torch.from_numpy(to_network_size(image, hw, normalised=True)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rgb_odd.png", "gray.png", "rgba.png", "tiny.png", "large.png"])
def test_every_form_of_a_picture_gives_the_same_tensor(name, form):
    hw = (320, 448)
    assert torch.equal(prepare(FORMS[form](name), hw), from_path(name, hw))


class Recorder(nn.Module):
    """Stands in for the network, keeps its inputs and finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor, **_: bool) -> dict[str, Tensor]:
        self.inputs.append(images.clone())
        batch = len(images)
        return {"pred_logits": torch.full((batch, 4, 91), -9.0), "pred_boxes": torch.full((batch, 4, 4), 0.5)}


@pytest.mark.parametrize("shape", [None, (320, 448)])
def test_predict_gives_the_network_the_recorded_tensors_alone_and_in_a_list(shape):
    model = RFDETRNano(pretrain_weights=None, encoder="dinov2_windowed_tiny", out_feature_indexes=[3, 6], device="cpu")
    model.model.model = recorder = Recorder()
    hw = shape or (384, 384)
    names = ("rgb_odd.png", "large.png", "gray.png")
    model.predict([PICTURES / name for name in names], shape=shape)
    for name in names:
        model.predict(PICTURES / name, shape=shape)
    together, *alone = recorder.inputs
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, torch.stack([from_path(name, hw) for name in names]))
