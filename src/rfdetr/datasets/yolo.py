"""YOLO data sets (data.yaml, pictures, label files) to an AnnotationSet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.annotations import (
    SPLIT_FOLDERS,
    AnnotationSet,
    Categories,
    Repair,
    clamp_boxes,
    exists,
    has_extent,
    is_inside,
    list_folder,
    missing_pictures,
    name_repairs,
    pack_names,
    row_offsets,
)
from rfdetr.datasets.faults import Faults
from rfdetr.datasets.keypoints import Wanted, in_order, keypoint_shape, yolo_schema
from rfdetr.datasets.yolo_labels import LabelRows, read_text

YAML_NAMES = ("data.yaml", "data.yml")
PICTURE_SUFFIXES = (".bmp", ".dng", ".jpg", ".jpeg", ".mpo", ".png", ".tif", ".tiff", ".webp")

_logger = logging.getLogger(__name__)


def find_yaml(root: Path) -> Path | None:
    """The description file of a YOLO data set, which may be named itself."""
    if root.is_file():
        return root
    return next((root / name for name in YAML_NAMES if (root / name).is_file()), None)


def find_yolo_split(root: Path, split: str) -> list[Path]:
    """What a split is made of: picture folders and .txt lists of pictures; empty if there is no such split."""
    yaml_file = find_yaml(root)
    return _find_sources(yaml_file, split, _load_yaml(yaml_file)) if yaml_file else []


def read_yolo(
    root: Path,
    split: str,
    sources: Sequence[Path] = (),
    *,
    masks: bool = False,
    keypoints: bool = False,
    schema: Wanted = None,
    lenient: bool = False,
) -> AnnotationSet:
    """Read one split ("train", "valid" or "test"); pictures come sorted by path, ids count from 0.

    The box of a polygon is the one around it, the outline of a box is the box. Both stay fractions of the picture, so
    that no picture has to be opened.

    Args:
        root: folder of the data set, or its description file.
        sources: picture folders and .txt lists that make the split, instead of those that the description names.
        masks, keypoints, schema, lenient: see `layout.read_split`.
    """
    root = root.resolve()
    yaml_file = find_yaml(root)
    if yaml_file is None:
        raise FileNotFoundError(f"{root} has no {YAML_NAMES[0]} or {YAML_NAMES[1]}; a YOLO data set needs one")
    root = yaml_file.parent
    settings = _load_yaml(yaml_file)
    names = _read_names(settings, yaml_file)
    faults = Faults(yaml_file, lenient)
    pairs, repairs = _find_pictures(split, settings, yaml_file, list(sources))
    pairs = _present(pairs, root, faults)
    paths = [_relative(picture, root) for picture, _ in pairs]

    own, shape, points = Categories(tuple(range(len(names))), names), None, None
    if keypoints:
        shape = keypoint_shape(settings, yaml_file)
        points, slots = yolo_schema(settings, len(names), schema, yaml_file)
        own = replace(own, slots=slots)
    files = [label for _, label in pairs]
    rows = LabelRows(len(names), _pose_fields(settings), shape, lenient)
    image_index = rows.read(files)
    boxes_xyxy = np.array(rows.boxes).reshape(-1, 4)
    if bad := rows.bad_lines:
        repairs.append(Repair("lines that cannot be read, left out", len(bad), bad[0], fatal=True))
    repairs += faults.repairs + _nc_repairs(settings, names, yaml_file) + name_repairs(names, yaml_file)
    repairs += _box_repairs(boxes_xyxy, image_index, files)
    name_bytes, name_offsets = pack_names(paths)
    return AnnotationSet(
        root=root,
        source=yaml_file,
        categories=own,
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        image_ids=np.arange(len(paths)),
        offsets=row_offsets(image_index, len(paths)),
        boxes_xyxy=boxes_xyxy,
        labels=np.array(own.labels)[rows.labels],
        areas=np.full(len(boxes_xyxy), np.nan),
        crowd=np.zeros(len(boxes_xyxy), bool),
        annotation_ids=np.arange(1, len(boxes_xyxy) + 1),
        normalized=np.ones(len(paths), bool),
        outlines=rows.outlines() if masks else None,
        keypoints=np.array(rows.keypoints).reshape(-1, shape[0], 3) if shape else None,
        schema=points,
        repairs=tuple(repairs),
    )


def _parse(text: str) -> Any:
    """The content of a YAML text of plain values. A few lines of lists that repeat each other could fill the memory."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            anchor = self.peek_event().anchor if self.check_event(yaml.AliasEvent) else None
            if isinstance(self.anchors.get(anchor), yaml.CollectionNode):
                raise yaml.YAMLError(f"*{anchor} repeats a list or mapping; write it out")
            return super().compose_node(parent, index)

    return Loader(text).get_single_data()


def _load_yaml(file: Path) -> dict[str, Any]:
    import yaml

    text = read_text(file)
    try:
        settings = _parse(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # PyYAML lets through whatever a value like a wrong date raises in its constructor
        raise ValueError(f"{file} holds a value that cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}; it has to be a mapping with at least 'names'")
    return settings


def _read_names(settings: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = in_order(settings.get("names"))
    if not names:
        raise ValueError(
            f"{file}: names is {settings.get('names')!r}; it has to be a list of class names, or a mapping from "
            "0, 1, 2, ... without gaps to class names"
        )
    return tuple(map(str, names))


def _nc_repairs(settings: dict[str, Any], names: tuple[str, ...], file: Path) -> list[Repair]:
    if settings.get("nc", len(names)) == len(names):
        return []
    example = f"nc {settings['nc']}, {len(names)} names in {file.name}"
    return [Repair("nc that disagrees with names, names count", 1, example)]


def _pose_fields(settings: dict[str, Any]) -> int | None:
    """Number of fields of a label line with keypoints, if the data set declares keypoints."""
    shape = settings.get("kpt_shape")
    is_shape = isinstance(shape, list) and len(shape) == 2 and set(map(type, shape)) == {int}
    return 5 + shape[0] * shape[1] if is_shape else None


def _declared(split: str, settings: dict[str, Any]) -> Any:
    return next((settings[name] for name in SPLIT_FOLDERS[split] if settings.get(name)), None)


def _expected(split: str, settings: dict[str, Any]) -> str:
    folders = " or ".join(f"{name}/images" for name in SPLIT_FOLDERS[split])
    return f"looked for its entry '{split}' ({_declared(split, settings)!r}) and for {folders} beside the file"


def _find_sources(yaml_file: Path, split: str, settings: dict[str, Any]) -> list[Path]:
    declared = _declared(split, settings)
    entries = [declared] if isinstance(declared, str) else declared or []
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(
            f"{yaml_file}: '{split}' is {declared!r}; it has to be a folder, a .txt file or a list of them"
        )
    sources = [_resolve(entry, yaml_file, settings) for entry in entries]
    found = [source for source in sources if source]
    if 0 < len(found) < len(sources):
        absent = entries[sources.index(None)]
        raise FileNotFoundError(f"{yaml_file}: '{absent}' of the {split} split does not exist; add or remove it")
    if found:
        return found
    fallback = [yaml_file.parent / name / "images" for name in SPLIT_FOLDERS[split]]
    return [folder for folder in fallback if folder.is_dir()][:1]


def _resolve(entry: str, yaml_file: Path, settings: dict[str, Any]) -> Path | None:
    """Place of a declared folder or list.

    A relative entry has to stay in the data set: Roboflow writes "../train/images" for a folder beside the yaml,
    and one level up there may be other data. A place outside has to be given absolutely.
    """
    root = yaml_file.parent
    declared_base = Path(str(settings.get("path") or "."))
    base = root / declared_base if os.path.isdir(root / declared_base) else root  # noqa: PTH112 - see `exists`
    path = Path(os.path.normpath(base / entry))
    allowed = Path(entry).is_absolute() or is_inside(path, base if declared_base.is_absolute() else root)
    if allowed and exists(path):
        return path
    reason = "absent" if allowed else "outside the data set"
    _logger.info("%s: '%s' is %s; trying the usual folders", yaml_file, entry, reason)
    return None


def _find_pictures(
    split: str, settings: dict[str, Any], yaml_file: Path, sources: list[Path]
) -> tuple[list[tuple[str, str]], list[Repair]]:
    """What `_collect` finds for a split, which must not be nothing."""
    sources = sources or _find_sources(yaml_file, split, settings)
    if not sources:
        raise FileNotFoundError(f"{yaml_file}: no pictures for the {split} split; {_expected(split, settings)}")
    pairs, repairs = _collect(sources, yaml_file.parent)
    if not pairs:
        raise ValueError(f"{yaml_file}: the {split} split is empty; no pictures in {', '.join(map(str, sources))}")
    return pairs, repairs


def _collect(sources: list[Path], root: Path) -> tuple[list[tuple[str, str]], list[Repair]]:
    """Picture and label paths of a split, by picture path; and a repair for label files without a picture."""
    pairs: set[tuple[str, str]] = set()
    orphans, without = list[str](), list[str]()
    for source in sources:
        found = set(_listed_pairs(source, root) if source.is_file() else _folder_pairs(source))
        labels = {label for _, label in found}
        folders = {label.rpartition("/")[0] for label in labels}
        listings = {folder: list_folder(Path(folder)) for folder in folders}
        if found and not any(Path(folder).is_dir() for folder in folders):
            raise FileNotFoundError(
                f"no labels for the pictures of {source}: there is no folder {min(folders)}, so all would be background"
            )
        bare = {folder for folder in folders if not Path(folder).is_dir()}
        without += sorted(picture for picture, label in found if label.rpartition("/")[0] in bare)
        if source.is_dir():
            written = {f"{folder}/{name}" for folder, names in listings.items() for name in names}
            alone = sorted(path for path in written - labels if _is_label_file(path))
            if len(alone) >= max(2, len(found) / 2) and not written & labels:
                raise FileNotFoundError(
                    f"not one of the {len(alone)} label files of {source} belongs to one of its {len(found)} pictures, "
                    f"the first is {alone[0]}; a label file has the name of its picture, with .txt"
                )
            orphans += alone
        pairs |= found
    kinds = (
        ("label files without a picture, ignored", orphans),
        ("pictures whose folder has no folder of labels, taken as background", without),
    )
    return sorted(pairs), [Repair(kind, len(paths), paths[0]) for kind, paths in kinds if paths]


def _present(pairs: list[tuple[str, str]], root: Path, faults: Faults) -> list[tuple[str, str]]:
    """The pairs whose picture is there."""
    names = [_relative(picture, root) for picture, _ in pairs]
    missing = missing_pictures(root, names)
    faults.found(
        np.array(missing, np.int64),
        "missing pictures",
        lambda row: (
            f"{len(missing)} of {len(pairs)} pictures are missing, the first is {pairs[row][0]}; "
            "add the files or remove their entries"
        ),
        FileNotFoundError,
    )
    gone = set(missing)
    return [pair for position, pair in enumerate(pairs) if position not in gone]


def _is_label_file(path: str) -> bool:
    # Labelling tools leave the class names in classes.txt beside the labels.
    return path.endswith(".txt") and not path.endswith("/classes.txt") and "/._" not in path


def _folder_pairs(folder: Path) -> Iterator[tuple[str, str]]:
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    seen: set[str] = set()
    for place, folders, names in os.walk(pictures, followlinks=True):
        # Links may lead in circles.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        place = Path(place).as_posix()
        for name in names:
            # macOS leaves twins "._name" on foreign disks.
            if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("._"):
                yield f"{place}/{name}", _label_path(place, name)


def _listed_pairs(file: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Pictures named one per line, relative to the list."""
    for line in read_text(file).splitlines():
        entry = line.strip()
        if not entry:
            continue
        entry = entry if exists(file.parent / entry) else entry.replace("\\", "/")
        picture = Path(os.path.normpath(file.parent / entry))
        if not Path(entry).is_absolute() and not is_inside(picture, root):
            raise ValueError(f"{file}: '{entry}' leads out of the data set folder {root}; give the absolute path")
        yield picture.as_posix(), _label_path(picture.parent.as_posix(), picture.name)


def _label_path(folder: str, name: str) -> str:
    """Label file of a picture: the last folder called "images" is replaced by "labels"."""
    before, images, after = f"{folder}/".rpartition("/images/")
    if not images:
        raise ValueError(
            f"cannot tell where the labels of {folder} are; keep pictures in a folder 'images' and labels in 'labels'"
        )
    return f"{before}/labels/{after}{name.rpartition('.')[0]}.txt"


def _relative(picture: str, root: Path) -> str:
    return picture.removeprefix(f"{root.as_posix()}/")


def _box_repairs(boxes_xyxy: np.ndarray, image_index: np.ndarray, files: list[str]) -> list[Repair]:
    gone = np.flatnonzero(~has_extent(clamp_boxes(boxes_xyxy, 1, 1)))
    if not len(gone):
        return []
    first = image_index[gone[0]]
    position = gone[0] - np.searchsorted(image_index, first) + 1
    example = f"object {position} of {files[first]}"
    return [Repair("boxes that are empty or outside the picture, left out", len(gone), example)]
