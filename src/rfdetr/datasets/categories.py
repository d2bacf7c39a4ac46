"""The classes of a COCO document and the ids that name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rfdetr.datasets.annotations import Categories

LARGEST = 2**63  # of the numbers that a column of ids holds


def read_categories(entries: Any, used: Collection[Any], file: Path, raw_ids: bool = False) -> Categories:
    """Classes of one COCO document by ascending id.

    Entries that only group others and are never used get no label: Roboflow writes such a root with id 0.

    Args:
        entries: the document's `categories`.
        used: ids that objects have.
    """
    _check_list(entries, file)
    if not entries:
        raise ValueError(f"{file}: 'categories' is missing or empty; without it the classes are unknown")
    by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        category_id = as_key(entry.get("id"))
        if not isinstance(category_id, int) or abs(category_id) >= LARGEST:
            raise ValueError(
                f"{file}: entry {position} of 'categories' has id {entry.get('id')!r}; it has to be a whole number"
            )
        if entry.get("name") in (None, ""):
            raise ValueError(f"{file}: category {category_id} has no 'name'; every category needs an id and a name")
        if category_id in by_id:
            raise ValueError(f"{file}: category id {category_id} is given twice; ids have to be unique")
        by_id[category_id] = entry
    kept = sorted(by_id) if raw_ids else _without_groups(by_id, used)
    return Categories(tuple(kept), tuple(str(by_id[i]["name"]) for i in kept), raw_ids)


def _check_list(entries: Any, file: Path) -> None:
    if entries is None:
        return
    if not isinstance(entries, list):
        raise ValueError(f"{file}: 'categories' is a {type(entries).__name__}; it has to be a list of objects")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{file}: entry {position} of 'categories' is {entry!r}; it has to be an object")


def category_entries(entries: list[dict[str, Any]], categories: Categories) -> list[dict[str, Any]]:
    """What the document says about each of its classes, in their order."""
    by_id = {as_key(entry["id"]): entry for entry in entries}
    return [by_id[category_id] for category_id in categories.ids]


def _without_groups(by_id: dict[int, dict[str, Any]], used: Collection[Any]) -> list[int]:
    """Ascending ids of the categories that are used or that no other category names as its supercategory."""
    parents = Counter(str(entry.get("supercategory")) for entry in by_id.values())
    for nothing in ("", "none", "null", "None"):
        parents.pop(nothing, None)

    def only_groups(category_id: int) -> bool:
        name, parent = str(by_id[category_id]["name"]), str(by_id[category_id].get("supercategory"))
        return parents[name] > (parent == name) and category_id not in used

    ids = sorted(by_id)
    return [i for i in ids if not only_groups(i)] or ids


def as_key(value: Any) -> int | str | None:
    """An id in the form in which it is compared: 7, 7.0 and "7" are 7; None where there is no usable id."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        is_number = digits.isdecimal() and len(digits) < 20 and str(int(value)) == value
        return int(value) if is_number else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None
