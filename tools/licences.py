"""Licences of everything that rfdetr and its extras bring along, as the installed distributions declare them.

    python tools/licences.py            # a table; ends with 1 if one of them is not permitted

What wheels bundle beyond that stands in the licence files inside them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "rfdetr"
CORE = "core"
# Extras of people who work on the package; nothing of them is installed with it.
TOOLS = {"dev", "release"}

PERMITTED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
}
# Distribution: (its licence, why it is permitted all the same).
REVIEWED = {
    "tqdm": ("MPL-2.0 AND MIT", "MPL covers its own files, which are used unchanged; nothing of it reaches others"),
    "certifi": ("MPL-2.0", "a list of root certificates, used unchanged; comes with requests, which supervision needs"),
}
# The same for distributions that only a tool needs.
REVIEWED_TOOLS = {
    "hypothesis": ("MPL-2.0", "runs in tests; MPL covers its own files"),
    "fqdn": ("MPL-2.0", "checks host names in the bill of materials; MPL covers its own files"),
}
# Distributions that declare no licence: (what it is, where that stands).
UNDECLARED: dict[str, tuple[str, str]] = {}

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
# Ways in which people write the old free text.
TEXTS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "freebsd": "BSD-2-Clause",
    "mit license": "MIT",
    "psfl": "PSF-2.0",
}


@dataclass(frozen=True)
class Row:
    """A distribution that is needed; `problem` says why its licence is not permitted."""

    name: str
    version: str
    licence: str
    problem: str = ""
    note: str = ""


def licence_of(found: Distribution) -> str:
    """The licence that a distribution declares, as an SPDX expression where that is known; "" for none."""
    meta = found.metadata
    if expression := meta.get("License-Expression"):
        return expression
    names = [text.rpartition("::")[2].strip() for text in meta.get_all("Classifier") or [] if "License ::" in text]
    names = [name for name in names if name not in ("DFSG approved", "OSI Approved")]
    if copyleft := [name for name in names if "General Public" in name]:
        return " AND ".join(copyleft)
    text = (meta.get("License") or "").strip()
    text = TEXTS.get(text.lower(), text)
    if text and _permitted(text):
        return text
    if names:
        return " OR ".join(CLASSIFIERS.get(name, name) for name in names)
    # A whole licence in that field says nothing to a program.
    return text.splitlines()[0][:60] if text else ""


def _permitted(expression: str) -> bool:
    """Whether an SPDX expression leaves a choice of permitted licences; in brackets all that is named must be."""
    if "(" in expression:
        names = re.split(r"\s+(?:AND|OR)\s+", re.sub(r"[()]", "", expression))
        return all(name.strip() in PERMITTED for name in names)
    choices = expression.split(" OR ")
    return any(all(name.strip() in PERMITTED for name in choice.split(" AND ")) for choice in choices)


def judge(found: Distribution, is_tool: bool = False) -> Row:
    """The row of a distribution."""
    name, licence = canonicalize_name(found.name), licence_of(found)
    reviewed = {**REVIEWED, **(REVIEWED_TOOLS if is_tool else {})}
    if not licence and name in UNDECLARED:
        licence, note = UNDECLARED[name]
        return Row(name, found.version, licence, "" if _permitted(licence) else "not permitted", note)
    if not licence:
        return Row(name, found.version, "", "declares no licence")
    if _permitted(licence):
        return Row(name, found.version, licence)
    if reviewed.get(name, ("", ""))[0] == licence:
        return Row(name, found.version, licence, note=reviewed[name][1])
    return Row(name, found.version, licence, "not permitted")


def needed(extra: str = "") -> tuple[dict[str, Distribution], set[str]]:
    """What is installed of all that the package or one of its extras needs, in turn, and the names of what is not."""
    found: dict[str, Distribution] = {}
    absent: set[str] = set()
    waiting = list(_requirements(distribution(PACKAGE), extra, only_extra=bool(extra)))
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        for wanted in ("", *extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                there = distribution(name)
            except PackageNotFoundError:
                absent.add(name)
                continue
            if name != PACKAGE:
                found[name] = there
            if name != PACKAGE or wanted:
                waiting += _requirements(there, wanted, only_extra=bool(wanted))
    return found, absent


def _requirements(of: Distribution, extra: str, only_extra: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and extras of what a distribution needs on this machine."""
    for text in of.requires or []:
        wanted = Requirement(text)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if (not always and wanted.marker is not None and wanted.marker.evaluate({"extra": extra})) or (
            always and not only_extra
        ):
            yield canonicalize_name(wanted.name), tuple(sorted(wanted.extras))


def collect() -> dict[str, tuple[list[Row], set[str]]]:
    """For the core and each extra: the rows of what is installed, and the names of what is not."""
    extras = sorted(distribution(PACKAGE).metadata.get_all("Provides-Extra") or [])
    groups = {}
    for group in (CORE, *extras):
        found, absent = needed("" if group == CORE else group)
        groups[group] = [judge(one, group in TOOLS) for _, one in sorted(found.items())], absent
    return groups


def main() -> int:
    """Print the table."""
    groups = collect()
    shown: set[str] = set()
    problems: dict[str, None] = {}
    for group, (rows, absent) in groups.items():
        fresh = [row for row in rows if row.problem or row.name not in shown]
        shown |= {row.name for row in rows}
        problems |= {f"{row.name} ({row.licence or row.problem})": None for row in rows if row.problem}
        more = f"; not installed here: {', '.join(sorted(absent))}" if absent else ""
        print(f"\n{group}: {len(rows)} distributions, {len(fresh)} of them not shown above{more}")
        for row in fresh:
            print(f"  {row.name:42}{row.version:18}{row.problem.upper():16}{row.licence}")
            if row.note:
                print(f"  {'':42}{row.note}")
    print(f"\n{len(shown)} distributions; not permitted: {', '.join(problems) or 'none'}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
