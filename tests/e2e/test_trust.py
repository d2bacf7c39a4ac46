"""Files of people who mean harm: no code of theirs runs, nothing elsewhere is touched, the memory stays free."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from tests.tiny import MODEL, TRAINING, tiny_data, tiny_model

import rfdetr
from rfdetr.checkpoints.file import store_thresholds
from rfdetr.checkpoints.load import read_checkpoint
from rfdetr.checkpoints.save import description, published_weights
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import Pictures
from rfdetr.datasets.transforms import EvalTransform

NAMES = ["cat", "dog", "owl"]
POSITIONS = "backbone.0.encoder.encoder.embeddings.position_embeddings"
PATCHES = "backbone.0.encoder.encoder.embeddings.patch_embeddings.projection.weight"


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What models import in a thread of their own, which must not meet the warning filters of another test."""
    importlib.import_module("supervision")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_model(num_classes=3)


@pytest.fixture(scope="module")
def content(tiny: Any) -> dict[str, Any]:
    """What a sound checkpoint holds."""
    weights = published_weights(tiny.model.model.state_dict())
    return {"model": weights, **description(tiny.model_config, NAMES)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


# Checkpoints


class Call:
    """A call that unpickling makes."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def ways_in(tiny: Any, data: Path, out: Path) -> dict[str, Callable[[Path], Any]]:
    """Everything that reads a checkpoint."""
    from rfdetr.checkpoints.describe import describe

    return {
        "pretrain_weights": lambda path: rfdetr.RFDETRNano(**{**MODEL, "pretrain_weights": str(path)}),
        "from_checkpoint": lambda path: rfdetr.from_checkpoint(path, device="cpu"),
        "RFDETR.from_checkpoint": lambda path: rfdetr.RFDETR.from_checkpoint(path, device="cpu"),
        "load": lambda path: rfdetr.load(path, device="cpu"),
        "resume": lambda path: tiny.train(**TRAINING, dataset_dir=data, output_dir=out, resume=str(path), epochs=1),
        "load_weights": tiny.model.load_weights,
        "info": describe,
        "thresholds": lambda path: store_thresholds(path, out / "stored.pth", {}),
    }


def add_record(path: Path, name: str, record: bytes) -> None:
    """Put one more record into a zip file, right after the first one of that name."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of two records that have one name
        for entry, value in entries:
            archive.writestr(entry, value)
            if entry.endswith("/data.pkl"):
                archive.writestr(entry.replace("data.pkl", name), record)


def attacks(content: dict[str, Any], mark: Path) -> dict[str, tuple[dict[str, Any], str, bool]]:
    """Content, suffix, and whether it is a zip file; every call would leave a mark."""
    touch = Call(os.system, f"touch {mark}")
    code = f"open({str(mark)!r}, 'w')"
    in_tensor = Call(torch._utils._rebuild_tensor_v2, Call(eval, code), 0, (1,), (1,), False, {})
    lightning = {"state_dict": {f"model.{n}": t for n, t in content["model"].items()}}
    return {
        "args": ({**content, "args": argparse.Namespace(class_names=NAMES, epochs=touch)}, ".pth", True),
        "nested args": ({**content, "args": {"class_names": [NAMES, {"a": (touch,)}]}}, ".pth", True),
        "a tensor": ({**content, "model": {**content["model"], "class_embed.bias": in_tensor}}, ".pth", True),
        "the old format": ({**content, "model": {"class_embed.bias": Call(exec, code)}}, ".pt", False),
        "the settings": ({**content, "model_config": Call(eval, code)}, ".pth", True),
        "a process": ({**content, "epoch": Call(subprocess.Popen, ["touch", str(mark)])}, ".pth", True),
        "opening a file": ({**content, "thresholds": Call(builtins.open, str(mark), "w")}, ".pth", True),
        "torch": ({**content, "rng": Call(torch.hub.load_state_dict_from_url, "https://localhost/x")}, ".pth", True),
        "lightning": ({**lightning, "hyper_parameters": touch}, ".ckpt", True),
        "lightning's callbacks": ({**lightning, "callbacks": {"x": touch}}, ".ckpt", False),
    }


ATTACKS = list(attacks({"model": {}}, Path("x")))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_way_in_runs_the_code_of_a_checkpoint(
    attack: str, tiny: Any, content: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    value, suffix, zipped = attacks(content, mark)[attack]
    path = tmp_path / f"bad{suffix}"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    for name, read in ways_in(tiny, data, tmp_path / "out").items():
        with pytest.raises(ValueError, match=r"asks to run .* and was not loaded") as raised:
            read(path)
        assert str(path) in str(raised.value), name
        assert not mark.exists(), name


def test_the_attacks_would_run_in_a_reader_that_trusts(content: dict[str, Any], tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "bad.pth"
    torch.save(attacks(content, mark)["nested args"][0], path)
    read_checkpoint(path, trust=True)
    assert mark.exists()


@pytest.mark.parametrize("name", ["data.pkl", "constants.pkl", "other.pkl"])
def test_a_second_pickle_in_the_archive_does_not_run(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "bad.pth"
    torch.save(content, path)
    add_record(path, name, pickle.dumps({"model": Call(os.system, f"touch {mark}")}, protocol=2))
    if name == "other.pkl":
        rfdetr.load(path, device="cpu")  # nobody reads it
    else:
        with pytest.raises(ValueError, match=r"bad\.pth"):
            rfdetr.load(path, device="cpu")
    assert not mark.exists()


def test_a_compressed_checkpoint_is_refused_before_anything_is_unpacked(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, path = tmp_path / "good.pth", tmp_path / "bomb.pth"
    torch.save(content, good)
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(path, "w") as bomb:
        for entry in archive.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            how = zipfile.ZIP_DEFLATED if is_pickle else zipfile.ZIP_STORED
            bomb.writestr(entry.filename, archive.read(entry) + bytes(2**24 if is_pickle else 0), how)
    assert path.stat().st_size < good.stat().st_size + 2**16
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"bomb\.pth is not a readable checkpoint \(a zip file that is compressed"):
        rfdetr.load(path)


def test_a_record_that_claims_to_be_huge_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save(content, path)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<II", raw, raw.find(b"PK\x01\x02") + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"bad\.pth is not a readable checkpoint"):
        rfdetr.load(path)


REPEATED = torch.zeros(1)
SHAPES = {
    "class_embed.bias": [REPEATED.expand(10**12), torch.tensor(0.0), torch.zeros(0)],
    "refpoint_embed.weight": [REPEATED.expand(10**12, 4), torch.zeros(8)],
    POSITIONS: [REPEATED.expand(1, 10**12, 192), torch.zeros(17, 192)],
    PATCHES: [REPEATED.expand(192, 3, 10**6, 10**6), torch.zeros(192, 3)],
    "class_embed.weight": [
        torch.sparse_coo_tensor(
            torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (10**6, 32), check_invariants=True
        ),
        torch.zeros(10**9, 32, device="meta"),
    ],
    "backbone.0.encoder.encoder.encoder.layer.0.attention.attention.query.weight": [torch.zeros(2, 2, 2)],
    "transformer.enc_out_class_embed.0.weight": [torch.tensor(0.0)],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_tensors_of_absurd_shapes_are_refused(name: str, zipped: bool, content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    for tensor in SHAPES[name]:
        value = {**content, "model": {**content["model"], name: tensor}}
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"bad\.pth"):
            rfdetr.load(path, device="cpu")


@pytest.mark.parametrize("name", ["num_channels", "positional_encoding_size", "num_queries", "num_windows"])
@pytest.mark.parametrize("value", [10**9, -1, "x", [1]])
def test_settings_that_are_absurd_are_refused(name: str, value: Any, content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({**content, "model_config": {**content["model_config"], name: value}}, path)
    with pytest.raises(ValueError, match=rf"bad\.pth.*{name.removeprefix('num_')}"):
        rfdetr.load(path, device="cpu")


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


SAFETENSORS = {
    "a huge header": safetensors(b"{}", 2**62),
    "a header that ends early": safetensors(b'{"a":{"dtype":"F32"', 1000),
    "data that is missing": safetensors(b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'),
    "a huge shape": safetensors(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}') + bytes(4),
    "a deep description": safetensors(json.dumps({"__metadata__": {"rfdetr": "[" * 10**5}}).encode()),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_safetensors_that_lie_about_their_sizes_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        rfdetr.load(path, device="cpu")


@pytest.mark.parametrize("place", ["../secret.bin", "{folder}/secret.bin", "link.bin", "../../../../../../etc/passwd"])
def test_an_onnx_file_reads_no_weights_from_elsewhere(place: str, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    stored = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[12], data_location=TensorProto.EXTERNAL)
    stored.external_data.add(key="location", value=place.format(folder=tmp_path))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (
        ("input", [1, 3, 32, 32]), ("dets", [12])
    )]  # fmt: skip
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["dets"])], "g", ports[:1], ports[1:], [stored])
    path = tmp_path / "model" / "bad.onnx"
    opset = helper.make_opsetid("", 17)
    path.write_bytes(helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString())
    with pytest.raises(ValueError, match=r"bad\.onnx is no ONNX file that onnxruntime can run: .*[Ee]xternal"):
        rfdetr.load(path)


# Archives


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def shard(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """A packed data set of one tar file."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "train-000000.tar", "w") as archive:
        for member, value in members:
            archive.addfile(member, io.BytesIO(value))
    index = {"shards": ["train-000000.tar"], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "train-index.json").write_text(json.dumps(index))
    return folder


def member(name: str, value: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(value)
    for key, given in more.items():
        setattr(info, key, given)
    return info, value


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 24)).save(out, "PNG")
    return out.getvalue()


def sample(key: str = "0", **described: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    boxes = [{"id": 1, "category_id": 1, "bbox": [2, 3, 8, 9]}]
    text = json.dumps({"image_id": 1, "annotations": boxes, **described}).encode()
    return [member(f"{key}.png", picture()), member(f"{key}.json", text)]


ODD_MEMBERS = [
    member("../link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    member("hard.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    member("device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("pipe.png", type=tarfile.FIFOTYPE),
    member("/folder", type=tarfile.DIRTYPE),
]


def test_links_devices_and_folders_in_a_shard_are_passed_over(tmp_path: Path) -> None:
    folder = shard(tmp_path / "a" / "set", [*ODD_MEMBERS, *sample()])
    before = tree(tmp_path)
    found = read_split(folder, "train")
    assert len(found) == 1
    assert found.read(0) == picture()
    assert tree(tmp_path) == before


LYING = {
    "a name that leads out": (sample("../../evil"), "'../../evil.png', which leads out"),
    "an absolute name": (sample("/tmp/evil"), "'/tmp/evil.png', which leads out"),
    "a description that leads out": (sample(file_name="../../evil.png"), "'../../evil.png', which leads out"),
    "one of Windows": (sample(file_name="..\\..\\evil.png"), "which leads out"),
    "another drive": (sample(file_name="C:evil.png"), "which leads out"),
    "a folder": (sample(file_name=".."), "which leads out"),
    "a zero byte": (sample(file_name="a\0.png"), "which leads out"),
    "a picture larger than the file": ([*sample()[1:], member("0.png", size=10**15)], "0.png is said to have"),
    "a description larger than the file": ([*sample()[:1], member("0.json", size=10**15)], "0.json is said to have"),
    "a long name that is huge": ([member("x", type=tarfile.GNUTYPE_LONGNAME, size=2**62)], "train-000000.tar"),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_shard_that_lies_is_refused_by_name(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members, said = LYING[kind]
    folder = tmp_path / "a" / "set"
    folder.mkdir(parents=True)
    with (folder / "train-000000.tar").open("wb") as handle:
        for info, value in members:
            handle.write(info.tobuf(tarfile.GNU_FORMAT) + value + bytes(-len(value) % 512))
        handle.write(bytes(1024))
    index = {"shards": ["train-000000.tar"], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "train-index.json").write_text(json.dumps(index))
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"train-000000\.tar") as raised:
        read_split(folder, "train")
    assert said in str(raised.value)
    for command in (["check", str(folder), "--fix"], ["pack", str(folder)]):
        assert run_cli([*command, str(tmp_path / "out")]) != 0
        assert "train-000000.tar" in "".join(capsys.readouterr())
    assert {path for path in tree(tmp_path) - before if tmp_path / "out" not in path.parents} == set()


def run_cli(arguments: list[str]) -> int:
    from rfdetr.cli import main

    try:
        return main(arguments) or 0
    except SystemExit as ended:
        return int(ended.code or 0)


# Annotation files


def coco(folder: Path, name: str) -> Path:
    """A data set of one picture of that name; the picture itself is somebody else's."""
    (folder / "train").mkdir(parents=True)
    document = {
        "images": [{"id": 7, "file_name": name, "width": 32, "height": 24}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 3, 8, 9]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    "name", ["../../secret.png", "{folder}/secret.png", "..\\..\\secret.png", "x/../../../secret.png"]
)
def test_a_picture_outside_of_the_data_set_is_neither_read_nor_copied(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    folder = coco(tmp_path / "set", name.format(folder=tmp_path))
    before = tree(tmp_path)
    for lenient in (False, True):
        with pytest.raises(
            ValueError, match=r"_annotations\.coco\.json: file_name .* \(image id 7\); move the file in"
        ):
            read_split(folder, "train", lenient=lenient)
    for command in (["check", str(folder), "--fix"], ["pack", str(folder)]):
        assert run_cli([*command, str(tmp_path / "out")]) == 1
        assert "leads out of the data set" in " ".join("".join(capsys.readouterr()).split())
    assert tree(tmp_path) == before


def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    folder = coco(tmp_path / "set", "a\0.png")
    with pytest.raises(ValueError, match=r"image id 7 has file_name .*it has to name the picture file"):
        read_split(folder, "train")


def test_linked_pictures_are_part_of_a_data_set(tmp_path: Path) -> None:
    """Whoever made the folder made the link; an annotation file cannot make one."""
    (tmp_path / "store.png").write_bytes(picture())
    folder = coco(tmp_path / "set", "a.png")
    (folder / "train" / "a.png").symlink_to(tmp_path / "store.png")
    assert read_split(folder, "train").read(0) == picture()


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40))
YAML = {
    "lists that repeat each other": (LAUGHS + "names: *a39", "repeats a list or mapping"),
    "in the place of a folder": (LAUGHS + "names: [cat]\nval: *a39", "repeats a list or mapping"),
    "merged mappings": (MERGED + "names: *a39", "repeats a list or mapping"),
    "a list in itself": ("names: &a [*a]", "repeats a list or mapping"),
    "a call": ("names: !!python/object/apply:os.system ['touch {mark}']", "not valid YAML"),
    "an object": ("names: !!python/object/new:subprocess.Popen [['touch', '{mark}']]", "not valid YAML"),
    "a module": ("names: !!python/module:antigravity", "not valid YAML"),
    "a hundred thousand levels": ("names: " + "[" * 100_000, "data.yaml"),
}


def yolo(folder: Path, text: str) -> Path:
    for part, name, value in (("images", "a.png", picture()), ("labels", "a.txt", b"0 0.5 0.5 0.2 0.2\n")):
        (folder / "train" / part).mkdir(parents=True)
        (folder / "train" / part / name).write_bytes(value)
    (folder / "data.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("kind", YAML)
def test_a_description_runs_no_code_and_does_not_unpack_to_billions(kind: str, tmp_path: Path) -> None:
    text, said = YAML[kind]
    mark = tmp_path / "ran"
    folder = yolo(tmp_path / "set", f"train: train/images\n{text.replace('{mark}', str(mark))}\n")
    with pytest.raises(ValueError, match=r"data\.yaml") as raised:
        read_split(folder, "train")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 500
    assert not mark.exists()


def test_a_description_may_repeat_a_plain_value(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set", "train: &all train/images\nval: *all\nnames: [cat]\n")
    assert len(read_split(folder, "valid")) == 1


# Pictures


def png(width: int, height: int) -> bytes:
    """A picture without pixels, but for what its header says."""

    def chunk(kind: bytes, value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + kind + value + struct.pack(">I", zlib.crc32(kind + value))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    raw = bytearray(out.getvalue())
    struct.pack_into(">HH", raw, raw.find(b"\xff\xc0") + 5, side, side)
    return bytes(raw)


BOMBS = {
    "a.png": png(100_000, 100_000),
    "b.png": png(2**31 - 1, 2**31 - 1),
    "c.jpg": jpeg(65_500),
    "d.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
    "e.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_would_fill_the_memory_is_not_decoded(name: str, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    with pytest.raises(UnidentifiedImageError, match=rf"{name}.* cannot be decoded: .*(exceed|bomb)"):
        tiny.predict(path)
    folder = coco(tmp_path / "set", name)
    (folder / "train" / name).write_bytes(BOMBS[name])
    found = read_split(folder, "train")
    assert not found.sizes.any()
    target = Pictures(found, EvalTransform(32), skip=True)[0][1]
    assert target["unreadable"].tolist() == [0]


# The network


ALONE = """
    import sys

    asked = []

    def watch(event, arguments):
        # A socket alone, which urllib3 opens to see whether there is IPv6, asks nobody.
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
            asked.append((event, str(arguments)))
            raise RuntimeError(f"{event} {arguments}: nothing here needs a network")

    sys.addaudithook(watch)
    import importlib, pkgutil, socket, warnings
    import rfdetr

    for module in pkgutil.walk_packages(rfdetr.__path__, "rfdetr."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert not asked, asked
    data, weights, out = sys.argv[1:]
    from tests.tiny import MODEL, TRAINING

    model = rfdetr.RFDETRNano(**{**MODEL, "pretrain_weights": weights})
    assert len(model.predict(f"{data}/train/train_00000.jpg", threshold=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**TRAINING, dataset_dir=data, output_dir=out, epochs=1)
    rfdetr.load(f"{out}/checkpoint_best_total.pth", device="cpu")
    assert not asked, asked
    try:
        socket.getaddrinfo("localhost", 80)
    except RuntimeError:
        print("done")
"""


def test_nothing_asks_the_network_where_weights_and_data_are_here(
    content: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "own.pth"
    torch.save(content, weights)
    command = [sys.executable, "-c", textwrap.dedent(ALONE), str(data), str(weights), str(tmp_path / "out")]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


# The source


# What the source may do although it could be dangerous: (file, what): why.
ALLOWED = {
    ("checkpoints/file.py", "pickle"): "its error is caught; torch.load does the reading",
    ("checkpoints/file.py", "torch.load"): "weights_only, unless the user says trust_checkpoint=True",
    ("training/launch.py", "pickle"): "a job that the run wrote into its own new folder a moment before",
    ("training/launch.py", "subprocess"): "the other processes of a run: this interpreter, this module",
    ("inference/images.py", "http://"): "an address that the user gives to predict",
    ("inference/sources.py", "http://"): "an address that the user gives to predict",
    ("serve/server.py", "http://"): "where the page of this machine is",
}  # fmt: skip
MODULES = ("pickle", "cPickle", "dill", "marshal", "shelve", "subprocess", "pty")
CALLS = ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen")
ENDINGS = ("extractall", "unpack_archive", "system", "popen")


def dangers(source: str) -> Iterator[str]:
    """What in a source text could run somebody else's code, unpack a file, or ask over an open line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            yield from (name.split(".")[0] for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                yield "torch.load"
            if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
                yield "allow_pickle"
            if name in CALLS or ("." in name and name.rpartition(".")[2] in ENDINGS):
                yield name
            if given.get("shell") == "True":
                yield "shell"
            if name.endswith(("_create_unverified_context", "load_library")) or given.get("verify") == "False":
                yield name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "http://" in node.value:
            yield "http://"


def test_the_source_does_nothing_dangerous_but_what_is_allowed_here() -> None:
    package = Path(rfdetr.__file__).parent
    found = {
        (file.relative_to(package).as_posix(), danger)
        for file in package.rglob("*.py")
        for danger in dangers(file.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import os, subprocess as s", "subprocess"),
        ("eval('1')", "eval"),
        ("exec(x)", "exec"),
        ("torch.load(x)", "torch.load"),
        ("torch.load(x, weights_only=False)", "torch.load"),
        ("yaml.load(x, L)", "yaml.load"),
        ("np.load(x, allow_pickle=True)", "allow_pickle"),
        ("tar.extractall()", "tar.extractall"),
        ("os.system('x')", "os.system"),
        ("run(x, shell=True)", "shell"),
        ("get(x, verify=False)", "get"),
        ("f'http://{x}'", "http://"),
    ],
)
def test_each_danger_is_seen(source: str, found: str) -> None:
    assert found in set(dangers(source))


@pytest.mark.parametrize("source", ["model.eval()", "torch.load(x, weights_only=True)", "run(x, shell=False)"])
def test_what_is_harmless_is_not(source: str) -> None:
    assert not set(dangers(source))
