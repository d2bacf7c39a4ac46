"""What is installed with the package is under permissive licences."""

from __future__ import annotations

import importlib.util
import sys
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("licences", Path(__file__).parents[2] / "tools" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["licences"] = module
    spec.loader.exec_module(module)
    return module


licences = load()


class Declared:
    """A distribution that declares something."""

    version = "1.0"

    def __init__(self, name: str, *fields: tuple[str, str]) -> None:
        self.name, self.metadata = name, Message()
        for key, value in fields:
            self.metadata[key] = value


@pytest.mark.parametrize("group", [licences.CORE, *sorted(distribution("rfdetr").metadata.get_all("Provides-Extra"))])
def test_everything_installed_with_it_is_permissive(group: str) -> None:
    found, _ = licences.needed("" if group == licences.CORE else group)
    rows = [licences.judge(one, group in licences.TOOLS) for one in found.values()]
    assert [(row.name, row.licence, row.problem) for row in rows if row.problem] == []


def test_needs_are_followed_to_the_end() -> None:
    core, absent = licences.needed()
    # supervision needs requests, which needs urllib3; the tests' own needs are no part of it.
    assert {"torch", "numpy", "pillow", "supervision", "requests", "urllib3", "certifi"} <= set(core)
    assert not {"pytest", "hypothesis", "onnx"} & set(core)
    assert not absent
    assert {"pytest", "hypothesis", "onnx"} <= set(licences.needed("dev")[0])


CLASSIFIER = "License :: OSI Approved :: "
DECLARED: list[tuple[Any, str, str]] = [
    # fields, the licence, the problem
    ([("License-Expression", "MIT")], "MIT", ""),
    ([("License-Expression", "GPL-3.0-only OR MIT")], "GPL-3.0-only OR MIT", ""),
    ([("License-Expression", "GPL-3.0-only AND MIT")], "GPL-3.0-only AND MIT", "not permitted"),
    ([("License-Expression", "MIT AND (BSD-2-Clause OR GPL-2.0-only)")], None, "not permitted"),
    ([("License-Expression", "LGPL-2.1-or-later")], "LGPL-2.1-or-later", "not permitted"),
    ([("License-Expression", "MPL-2.0")], "MPL-2.0", "not permitted"),
    ([("License", "Apache License, Version 2.0")], "Apache-2.0", ""),
    ([("License", "Copyright me\n\nAll rights"), ("Classifier", CLASSIFIER + "BSD License")], "BSD-3-Clause", ""),
    ([("License", "Copyright me\n\nAll rights")], "Copyright me", "not permitted"),
    ([("License", "MIT"), ("Classifier", CLASSIFIER + "GNU Affero General Public License v3")], None, "not permitted"),
    ([("Classifier", CLASSIFIER + "MIT License"), ("Classifier", "Topic :: x")], "MIT", ""),
    ([], "", "declares no licence"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "licence", "problem"), DECLARED)
def test_a_licence_is_judged_by_what_is_declared(fields: Any, licence: str | None, problem: str) -> None:
    row = licences.judge(Declared("Some_Thing", *fields))
    assert row.name == "some-thing"
    assert row.problem == problem
    assert licence in (None, row.licence)


def test_an_exception_holds_for_that_distribution_and_licence_alone() -> None:
    assert not licences.judge(Declared("tqdm", ("License", "MPL-2.0 AND MIT"))).problem
    assert licences.judge(Declared("tqdm", ("License", "GPL-3.0-only"))).problem
    assert not licences.judge(Declared("hypothesis", ("License-Expression", "MPL-2.0")), is_tool=True).problem
    assert licences.judge(Declared("hypothesis", ("License-Expression", "MPL-2.0"))).problem


def test_the_table_ends_with_an_error_where_something_is_not_permitted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = licences.Row
    monkeypatch.setattr(licences, "collect", lambda: {"core": ([row("a", "1", "MIT")], set())})
    assert licences.main() == 0
    monkeypatch.setattr(licences, "collect", lambda: {"core": ([row("b", "1", "GPL", "not permitted")], {"c"})})
    assert licences.main() == 1
    assert "NOT PERMITTED" in capsys.readouterr().out
