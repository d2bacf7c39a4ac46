"""Where the splits of a data set lie, and the one entry point that reads any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rfdetr.datasets.annotations import SPLIT_FOLDERS, AnnotationSet, Categories, Repair
from rfdetr.datasets.coco import read_coco
from rfdetr.datasets.keypoints import Wanted
from rfdetr.datasets.shards import INDEX_ENDING, read_shards
from rfdetr.datasets.yolo import YAML_NAMES, find_yaml, find_yolo_split, read_yolo

DATASET_FILES = ("roboflow", "coco", "yolo", "o365", "webdataset")
ROBOFLOW_FILE = "_annotations.coco.json"
COCO_FILES = ("instances", "person_keypoints")
COCO_PREFIXES = {"train": "train", "valid": "val", "test": "test"}
# Words in the names of COCO's other files: captions_train2017.json and the like.
OTHER_FILES = {"captions", "stuff", "panoptic", "info"}


# What labelling tools call the file of a project: CVAT, Label Studio, FiftyOne, makesense and others.
LONE_FILES = ("instances_default", "result", "labels", "annotations", "coco", "instances", "_annotations")
_OTHER_SPLITS = [names for split, names in SPLIT_FOLDERS.items() if split != "train"]


@dataclass(frozen=True)
class Place:
    """Where a split lies.

    Args:
        format: "coco", "yolo" or "shards".
        file: annotation file, description file (YOLO) or index (shards).
        pictures: COCO: folders that the names may be relative to, of which the first that has them counts; YOLO: what
            the split is made of instead of what the description says.
        data_root: folder that no picture name may leave.
        raw_ids: labels are the category ids.
    """

    format: str
    file: Path
    pictures: tuple[Path, ...]
    data_root: Path
    raw_ids: bool = False


def detect_format(root: Path, dataset_file: str = "roboflow") -> str:
    """Either "coco", "yolo" or "shards"; `dataset_file="roboflow"` looks into the folder.

    There `train/_annotations.coco.json` wins over `data.yaml`, and that over shards and other JSON files.
    """
    kind = _kind(_existing(root, dataset_file), dataset_file)
    return kind if kind in ("yolo", "shards") else "coco"


def has_split(root: Path, split: str, dataset_file: str = "roboflow", keypoints: bool = False) -> bool:
    """Whether the data set has the split ("train", "valid" or "test")."""
    return find_split(root, split, dataset_file, keypoints) is not None


def find_split(root: Path, split: str, dataset_file: str = "roboflow", keypoints: bool = False) -> Place | None:
    """Where a split of a data set lies, None if there is no such split."""
    root = _existing(root, dataset_file)
    kind = _kind(root, dataset_file)
    if _known(split) and kind == "yolo":
        yaml_file = find_yaml(root)
        found = find_yolo_split(root, split) if yaml_file else []
        return Place("yolo", yaml_file, (), yaml_file.parent) if found and yaml_file else None
    root = root.parent if root.is_file() else root
    if kind == "shards":
        files = [root / f"{name}{INDEX_ENDING}" for name in SPLIT_FOLDERS[split]]
        return next((Place("shards", file, (), root) for file in files if file.is_file()), None)
    if kind == "roboflow":
        return _find_roboflow(root, split)
    if kind == "coco":
        return _find_coco_tree(root, split, COCO_FILES[keypoints])
    place = _find_plain(root, split, keypoints)
    return replace(place, raw_ids=kind == "o365") if place else None


def find_given(path: Path, split: str, around: Path | None = None, keypoints: bool = False) -> Place:
    """Where a split lies that was given as a path of its own.

    Args:
        path: an annotation file of COCO, the index of shards, a folder with one of them, a folder of pictures or a
            list of them of a YOLO data set, or a data set, whose split of that name counts.
        around: folder of a data set that `path` belongs to, if there is one.

    Raises:
        FileNotFoundError, ValueError: there is nothing, or nothing that could be a split.
    """
    # A link counts by its own name.
    path = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100
    if not path.exists():
        raise FileNotFoundError(f"{path}, given as the {split} split, does not exist")
    if path.is_file() and path.name.endswith(INDEX_ENDING):
        return Place("shards", path, (), path.parent)
    if path.is_file() and path.suffix == ".json":
        return _given_file(path, split, around)
    if path.is_dir() and (path / ROBOFLOW_FILE).is_file():
        return _given_file(path / ROBOFLOW_FILE, split, around)
    if path.suffix in (".yaml", ".yml") or (path.is_dir() and _looks_like(path)):
        if place := find_split(path, split, keypoints=keypoints):
            return place
        raise FileNotFoundError(_missing_split(path, split, "roboflow", keypoints))
    files = _json_files(path)
    if len(files) == 1:
        return _given_file(files[0], split, around)
    # What lies nearest says what the labels mean.
    for folder in [*[path, *path.parents][path.is_file() : 4], *([around] if around else [])]:
        if yaml_file := find_yaml(folder):
            return Place("yolo", yaml_file, (path,), yaml_file.parent)
    raise ValueError(
        f"{path}, given as the {split} split, is no COCO file, folder with one, or part of a YOLO data set: found "
        f"{_contents(path) if path.is_dir() else 'a ' + (path.suffix or 'file')}, and no {YAML_NAMES[0]} there or above"
    )


def read_split(
    root: Path,
    split: str,
    dataset_file: str = "roboflow",
    categories: Categories | None = None,
    *,
    masks: bool = False,
    keypoints: bool = False,
    schema: Wanted = None,
    lenient: bool = False,
) -> AnnotationSet:
    """Read one split and warn once about what was repaired in it.

    Args:
        split: "train", "valid" (folders `val` and `validation` count too) or "test".
        dataset_file: "roboflow" (the folder decides), "coco" (original COCO tree, labels are raw ids), "o365" (the same
            for files of any name), "yolo" or "webdataset".
        categories: those of the train split, whose labels valid and test have to share. None: made from this split.
        masks: read the outlines of the objects.
        keypoints: read keypoints; labels are then those of `schema`, or count from 0.
        schema: that of the train split together with its categories, or the number of keypoints by label that the data
            must fit. None: what the data has.
        lenient: leave out what would be an error, count it in `repairs`, and warn of nothing.

    Raises:
        FileNotFoundError: the split, its annotation file or a picture does not exist.
        ValueError: the annotations are broken, or without what was asked for.
    """
    place = find_split(root, split, dataset_file, keypoints)
    if place is None:
        raise FileNotFoundError(_missing_split(_existing(root, dataset_file), split, dataset_file, keypoints))
    return read_place(place, split, categories, masks=masks, keypoints=keypoints, schema=schema, lenient=lenient)


def read_place(place: Place, split: str, categories: Categories | None = None, **asked: Any) -> AnnotationSet:
    """Read the split at a place; `asked` are the keywords of `read_split`."""
    if asked["masks"] and asked["keypoints"]:
        raise ValueError("masks and keypoints cannot be read together; no model predicts both")
    if place.format == "yolo":
        annotations = _with_names(read_yolo(place.file, split, place.pictures, **asked), categories)
    elif place.format == "shards":
        annotations = read_shards(place.file, categories, **asked)
    else:
        more = {"raw_ids": place.raw_ids, "data_root": place.data_root}
        annotations = read_coco(place.file, place.pictures, categories, **more, **asked)
    if split == "train" and not len(annotations.labels):
        repair = Repair("train split without any object", 1, f"{len(annotations)} background pictures")
        annotations = replace(annotations, repairs=(*annotations.repairs, repair))
    elif split == "train":
        _require_learnable(annotations)
    if not asked["lenient"]:
        annotations.warn_about_repairs()
    return annotations


def _require_learnable(annotations: AnnotationSet) -> None:
    """ValueError if no object has what a model for masks or keypoints learns from."""
    outlines, keypoints = annotations.outlines, annotations.keypoints
    if outlines is not None and not outlines.exist.any():
        missing, what, add = "segmentation", "masks", "outlines"
    elif keypoints is not None and not (keypoints[..., 2] > 0).any():
        missing, what, add = "labelled keypoint", "keypoints", "keypoints"
    else:
        return
    raise ValueError(
        f"{annotations.source}: not one of its {len(annotations.labels)} objects has a {missing}; {what} cannot be "
        f"learnt from boxes alone, so add {add} or train a detection model"
    )


def _existing(root: Path, dataset_file: str) -> Path:
    """The folder of a data set, or its description file."""
    if dataset_file not in DATASET_FILES:
        raise ValueError(f"dataset_file={dataset_file!r} is not known; choose one of {', '.join(DATASET_FILES)}")
    root = Path(root).expanduser().resolve()
    if not root.exists():
        raise FileNotFoundError(f"data set folder {root} does not exist")
    if root.is_file() and root.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{root} is a file and no description of a data set; give its folder, or train={root.name!r}")
    return root


def _known(split: str) -> str:
    if split not in SPLIT_FOLDERS:
        raise ValueError(f"split={split!r} is not known; choose one of {', '.join(SPLIT_FOLDERS)}")
    return split


def _looks_like(folder: Path) -> str:
    """What a folder looks like: "roboflow", "yolo", "shards", "plain" (COCO files of any name), or "" for nothing."""
    if any(_find_roboflow(folder, split) for split in SPLIT_FOLDERS):
        return "roboflow"
    if find_yaml(folder):
        return "yolo"
    if any((folder / f"{name}{INDEX_ENDING}").is_file() for names in SPLIT_FOLDERS.values() for name in names):
        return "shards"
    return "plain" if any(_plain_files(folder, split) for split in SPLIT_FOLDERS) else ""


def _kind(root: Path, dataset_file: str) -> str:
    if dataset_file != "roboflow":
        return {"webdataset": "shards"}.get(dataset_file, dataset_file)
    kind = "yolo" if root.is_file() else _looks_like(root)
    if not kind:
        raise FileNotFoundError(
            f"{root} is no data set in a known format: looked for train/{ROBOFLOW_FILE} or "
            f"annotations/instances_train*.json (COCO), {' or '.join(YAML_NAMES)} (YOLO) and train{INDEX_ENDING} "
            f"(shards), found {_contents(root)}{_other_yaml(root)}"
        )
    return kind


def _other_yaml(root: Path) -> str:
    files = [path for path in sorted(root.glob("*.y*ml")) if not path.name.startswith("._")]
    return f"; if it is described by {files[0].name}, give that file instead of the folder" if files else ""


def _find_roboflow(root: Path, split: str) -> Place | None:
    folders = [root / name for name in SPLIT_FOLDERS[split]]
    found = next((folder for folder in folders if (folder / ROBOFLOW_FILE).is_file()), None)
    return Place("coco", found / ROBOFLOW_FILE, (found, found / "images", root), root) if found else None


def _find_coco_tree(root: Path, split: str, kind: str) -> Place | None:
    """annotations/<kind>_<name>.json with the pictures in <name>/ or images/<name>/, as in train2017."""
    prefix = COCO_PREFIXES[split]
    files = sorted((root / "annotations").glob(f"{kind}_{prefix}*.json"))
    info = root / "annotations" / "image_info_test-dev2017.json"
    if split == "test" and not files and info.is_file():
        return Place("coco", info, (root / "test2017",), root, raw_ids=True)
    file = _only(files, split)
    if file is None:
        return None
    name = file.stem.removeprefix(f"{kind}_")
    return Place("coco", file, (root / name, root / "images" / name, root / split), root, raw_ids=True)


def _only(files: Sequence[Path], split: str) -> Path | None:
    """The one file, or the one of the year that everybody uses."""
    original = [file for file in files if file.stem.endswith("2017")]
    if len(files) > 1 and len(original) != 1:
        shown = ", ".join(map(str, files[:3])) + f", ... ({len(files)} files)" * (len(files) > 3)
        raise ValueError(f"several annotation files for the {split} split: {shown}; keep one, or give {split}=FILE")
    return next(iter(original or files), None)


def _find_plain(root: Path, split: str, keypoints: bool) -> Place | None:
    files = _plain_files(root, split)
    # Of several files those of the task are meant.
    for wanted in (COCO_FILES[keypoints], "keypoints" if keypoints else ""):
        if chosen := [file for file in files if wanted in file.stem and ("keypoints" in file.stem) <= keypoints]:
            files = chosen
            break
    file = _only(files, split)
    return Place("coco", file, _picture_folders(file, root, split), root) if file else None


def _plain_files(root: Path, split: str) -> list[Path]:
    """JSON files that are named after a split, or lie in a folder that is."""
    names = SPLIT_FOLDERS[split]
    files = [file for folder in (root, root / "annotations") for file in _json_files(folder)]
    files = [file for file in files if not set(_words(file)) & OTHER_FILES]
    if named := [file for file in files if set(_words(file)) & set(names)]:
        return named
    inside = [root / name for name in names] + [root / "annotations" / name for name in names]
    if found := [file for folder in inside for file in _json_files(folder)]:
        return found
    # The one file of a tool that knows no splits is there to be trained on.
    alone = split == "train" and len(files) == 1 and not any(set(_words(files[0])) & set(n) for n in _OTHER_SPLITS)
    return [file for file in files if alone and file.stem in LONE_FILES]


def _json_files(folder: Path) -> list[Path]:
    # macOS leaves twins "._name" on foreign disks.
    return sorted(file for file in folder.glob("*.json") if not file.name.startswith("._")) if folder.is_dir() else []


def _words(file: Path) -> list[str]:
    return re.findall("[a-z]+", file.stem.lower())


def _picture_folders(file: Path, root: Path, split: str) -> tuple[Path, ...]:
    """Where the pictures of a COCO file may lie."""
    name = file.stem.removeprefix("instances_").removeprefix("person_keypoints_")
    names = dict.fromkeys((name, *SPLIT_FOLDERS[split]))
    folders = [file.parent, *(root / part / name for name in names for part in ("", "images", "data"))]
    folders += [root / name / part for name in names for part in ("images", "data")]
    return (*folders, file.parent / "images", root / "images", root / "data", root)


def _given_file(file: Path, split: str, around: Path | None) -> Place:
    inner = {"annotations", "labels", *(name for names in SPLIT_FOLDERS.values() for name in names)}
    root = file.parent.parent if file.parent.name in inner else file.parent
    if around is not None and file.is_relative_to(around):
        root = around
    return Place("coco", file, _picture_folders(file, root, split), root)


def _with_names(annotations: AnnotationSet, categories: Categories | None) -> AnnotationSet:
    """The same labels if their classes are those of the train split, an error otherwise."""
    if categories is not None and categories.names != annotations.categories.names:
        raise ValueError(
            f"{annotations.source}: classes are {annotations.class_names}, but the given categories are "
            f"{list(categories.names)}; they have to be the same in the same order"
        )
    return annotations


def _missing_split(root: Path, split: str, dataset_file: str, keypoints: bool) -> str:
    kind, folder = _kind(root, dataset_file), root.parent if root.is_file() else root
    if kind == "coco":
        expected = str(folder / "annotations" / f"{COCO_FILES[keypoints]}_{COCO_PREFIXES[split]}2017.json")
    elif kind == "yolo":
        expected = f"its entry in {find_yaml(root) or folder / YAML_NAMES[0]} and {split}/images"
    elif kind == "shards":
        expected = str(folder / f"{split}{INDEX_ENDING}")
    else:
        expected = " or ".join(str(folder / name / ROBOFLOW_FILE) for name in SPLIT_FOLDERS[split])
    return f"the data set has no {split} split: looked for {expected}, found {_contents(folder)} in {folder}"


def _contents(folder: Path, limit: int = 12) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    shown = ", ".join(names[:limit]) + ", ..." * (len(names) > limit)
    return shown or "nothing"
