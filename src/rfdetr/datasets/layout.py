"""Where the splits of a data set lie, and the one entry point that reads any of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rfdetr.datasets.annotations import SPLIT_FOLDERS, AnnotationSet, Categories, Repair
from rfdetr.datasets.coco import read_coco
from rfdetr.datasets.keypoints import Wanted
from rfdetr.datasets.yolo import YAML_NAMES, find_yaml, find_yolo_split, read_yolo

DATASET_FILES = ("roboflow", "coco", "yolo")
ROBOFLOW_FILE = "_annotations.coco.json"
COCO_FILES = ("instances", "person_keypoints")
COCO_PREFIXES = {"train": "train", "valid": "val", "test": "test"}


def detect_format(root: Path, dataset_file: str = "roboflow") -> str:
    """Either "coco" or "yolo"; `dataset_file="roboflow"` looks into the folder, and COCO wins if both are there."""
    root = _existing(root, dataset_file)
    if dataset_file != "roboflow":
        return dataset_file
    if any(_find_roboflow(root, split) for split in SPLIT_FOLDERS):
        return "coco"
    if find_yaml(root):
        return "yolo"
    hint = (
        '; for a folder annotations/ with instances_*.json give dataset_file="coco"' * (root / "annotations").is_dir()
    )
    raise FileNotFoundError(
        f"{root} is no data set in a known format: looked for train/{ROBOFLOW_FILE} (COCO) and "
        f"{' or '.join(YAML_NAMES)} (YOLO), found {_contents(root)}{hint}"
    )


def has_split(root: Path, split: str, dataset_file: str = "roboflow", keypoints: bool = False) -> bool:
    """Whether the data set has the split ("train", "valid" or "test")."""
    if detect_format(root, dataset_file) == "yolo":
        return bool(find_yolo_split(_existing(root, dataset_file), _known(split)))
    return find_coco_split(root, split, dataset_file, keypoints) is not None


def find_coco_split(
    root: Path, split: str, dataset_file: str = "roboflow", keypoints: bool = False
) -> tuple[Path, Path] | None:
    """Annotation file and picture folder of a split in COCO format, None if there is no such split."""
    root = _existing(root, dataset_file)
    if dataset_file == "coco":
        return _find_coco_tree(root, _known(split), COCO_FILES[keypoints])
    return _find_roboflow(root, _known(split))


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
        dataset_file: "roboflow" (the folder decides), "coco" (original COCO tree, labels are raw ids) or "yolo".
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
    if masks and keypoints:
        raise ValueError("masks and keypoints cannot be read together; no model predicts both")
    root = _existing(root, dataset_file)
    asked: Any = {"masks": masks, "keypoints": keypoints, "schema": schema, "lenient": lenient}
    if detect_format(root, dataset_file) == "yolo":
        annotations = _with_names(read_yolo(root, _known(split), **asked), categories)
    else:
        found = find_coco_split(root, split, dataset_file, keypoints)
        if found is None:
            raise FileNotFoundError(_missing_split(root, split, dataset_file, keypoints))
        annotations = read_coco(*found, categories, raw_ids=dataset_file == "coco", data_root=root, **asked)
    if split == "train" and not len(annotations.labels):
        repair = Repair("train split without any object", 1, f"{len(annotations)} background pictures")
        annotations = replace(annotations, repairs=(*annotations.repairs, repair))
    elif split == "train":
        _require_learnable(annotations)
    if not lenient:
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
    if dataset_file not in DATASET_FILES:
        raise ValueError(f"dataset_file={dataset_file!r} is not known; choose one of {', '.join(DATASET_FILES)}")
    root = Path(root).expanduser().resolve()
    # The data.yaml of a data set names it too.
    root = root.parent if root.is_file() else root
    if not root.is_dir():
        raise FileNotFoundError(f"data set folder {root} does not exist")
    return root


def _known(split: str) -> str:
    if split not in SPLIT_FOLDERS:
        raise ValueError(f"split={split!r} is not known; choose one of {', '.join(SPLIT_FOLDERS)}")
    return split


def _find_roboflow(root: Path, split: str) -> tuple[Path, Path] | None:
    folders = [root / name for name in SPLIT_FOLDERS[split]]
    return next(((folder / ROBOFLOW_FILE, folder) for folder in folders if (folder / ROBOFLOW_FILE).is_file()), None)


def _find_coco_tree(root: Path, split: str, kind: str) -> tuple[Path, Path] | None:
    """annotations/<kind>_<name>.json with the pictures in <name>/ or images/<name>/, as in train2017."""
    prefix = COCO_PREFIXES[split]
    files = sorted((root / "annotations").glob(f"{kind}_{prefix}*.json"))
    original = [file for file in files if file.stem == f"{kind}_{prefix}2017"]
    if len(files) > 1 and not original:
        raise ValueError(f"several annotation files for the {split} split: {', '.join(map(str, files))}; keep one")
    info = root / "annotations" / "image_info_test-dev2017.json"
    if split == "test" and not files and info.is_file():
        return info, root / "test2017"
    if not files:
        return None
    file = (original or files)[0]
    name = file.stem.removeprefix(f"{kind}_")
    places = [root / name, root / "images" / name, root / split]
    return file, next((place for place in places if place.is_dir()), places[0])


def _with_names(annotations: AnnotationSet, categories: Categories | None) -> AnnotationSet:
    """The same labels if their classes are those of the train split, an error otherwise."""
    if categories is not None and categories.names != annotations.categories.names:
        raise ValueError(
            f"{annotations.source}: classes are {annotations.class_names}, but the given categories are "
            f"{list(categories.names)}; they have to be the same in the same order"
        )
    return annotations


def _missing_split(root: Path, split: str, dataset_file: str, keypoints: bool) -> str:
    if dataset_file == "coco":
        expected = str(root / "annotations" / f"{COCO_FILES[keypoints]}_{COCO_PREFIXES[split]}2017.json")
    else:
        expected = " or ".join(str(root / name / ROBOFLOW_FILE) for name in SPLIT_FOLDERS[split])
    return f"the data set has no {split} split: looked for {expected}, found {_contents(root)} in {root}"


def _contents(folder: Path, limit: int = 12) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    shown = ", ".join(names[:limit]) + ", ..." * (len(names) > limit)
    return shown or "nothing"
