"""Write the references out of the code: docs/options.md, docs/cli.md and docs/reference.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import os
import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from rfdetr import cli
from rfdetr.config import KeypointTrainConfig, ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.options import Options

DOCS = Path(__file__).parent
OPTIONS = """# Options

Generated from `rfdetr/config.py` by `make docs`.

Options of the model go to the constructor, `RFDETRNano(resolution=512)`; where a size has its own value, the table of
sizes in the README wins over the default here. Options of a run go to `train()`. Unknown names are errors. On the
command line they are `--resolution 512`, with dashes or underscores.
"""
COMMANDS = """# Commands

Generated from the parsers by `make docs`. Names are those of Python, with dashes or underscores; `--name=false` turns
off what is on. `--config FILE` takes options from a YAML or JSON file, what is typed wins over it, and `--print-config`
prints such a file. Exit codes: 0 done, 1 failed (one line on standard error says why), 2 wrong usage, 130 interrupted.
Results go to standard output, everything else to standard error.
"""
REFERENCE = """# Python

Generated from the code by `make docs`. What is not here is not part of the interface, but for the older import paths,
which [migrate.md](migrate.md) tells about.
"""
# What people import, by the page's sections.
PARTS = {
    "Models": ["rfdetr.detr:RFDETR", "rfdetr.loading:load", "rfdetr.export.predictor:ExportedModel"],
    "What a model holds": ["rfdetr.main:Model", "rfdetr.export.metadata:Facts", "rfdetr.inference.stream:Prediction"],
    "Data": ["rfdetr.datasets.synthetic:draw_dataset", "rfdetr.datasets:build_dataset"],
    "The two loops": ["rfdetr.engine:train_one_epoch", "rfdetr.engine:evaluate"],
    "Network and losses": [
        "rfdetr.models.detector:Detector",
        "rfdetr.models.lwdetr:build_model",
        "rfdetr.models.lwdetr:build_criterion_and_postprocessors",
        "rfdetr.models.criterion:Criterion",
        "rfdetr.models.postprocess:PostProcess",
    ],
    "A server": ["rfdetr.serve.server:serve", "rfdetr.serve.app:create_app"],
}


def table(config: type[Options], known: type[Options] = Options) -> str:
    """One row per option that is new, or has another default than in `known`."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    changed = config.preset()
    for name, field in config.model_fields.items():
        if name not in known.model_fields or name in changed:
            rows.append(f"| `{name}` | {default(changed.get(name, field.default))} | {field.description} |")
    return "\n".join(rows)


def default(value: Any) -> str:
    """A default as code."""
    return "required" if value is PydanticUndefined else f"`{value!r}`".replace("'", '"')


def options() -> str:
    """The page of all options."""
    parts = {
        "Model": table(ModelConfig),
        "Training": table(TrainConfig),
        "Training of segmentation models, further options": table(SegmentationTrainConfig, TrainConfig),
        "Training of keypoint models, other defaults": table(KeypointTrainConfig, TrainConfig),
    }
    return OPTIONS + "".join(f"\n## {title}\n\n{rows}\n" for title, rows in parts.items())


def commands() -> str:
    """The page of all commands: what their `--help` prints, 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    parts = []
    for name, command in cli.COMMANDS.items():
        _, parser = cli.build_parser(name)
        assert parser is not None
        parts.append(
            f"\n## rfdetr {name}\n\n{command.help[0].upper()}{command.help[1:]}.\n\n```text\n{_help(parser)}\n```\n"
        )
    return COMMANDS + "".join(parts)


def _help(parser: argparse.ArgumentParser) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        parser.print_help()
    return said.getvalue().rstrip()


def reference() -> str:
    """The page of classes and functions: signature and docstring."""
    parts = []
    for title, names in PARTS.items():
        parts.append(f"\n## {title}\n")
        for path in names:
            module, name = path.split(":")
            parts.append(_entry(f"{module}.{name}", getattr(importlib.import_module(module), name)))
    return REFERENCE + "".join(parts)


def _entry(path: str, found: Any) -> str:
    text = f"\n### {path}\n\n{_signature(path.rsplit('.', 1)[-1], found)}\n{_prose(found)}\n"
    for name, method in _members(found) if inspect.isclass(found) else ():
        head = _signature(name, method) if callable(method) else f"```text\n{name}\n```\n"
        text += f"\n#### {path.rsplit('.', 1)[-1]}.{name}\n\n{head}\n{_prose(method)}\n"
    return text


def _members(kind: type) -> list[tuple[str, Any]]:
    """Public methods and properties in the order in which they are written, those of bases first."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("rfdetr."):
            public = {name: member for name, member in vars(base).items() if not name.startswith("_")}
            found |= {n: m for n, m in public.items() if isinstance(m, property | classmethod) or inspect.isfunction(m)}
    return [(n, getattr(kind, n) if not isinstance(m, property) else m) for n, m in found.items()]


def _signature(name: str, found: Any) -> str:
    parameters = str(inspect.signature(found)).replace("(self, ", "(").replace("(self)", "()")
    # Annotations are texts.
    parameters = re.sub(r"(: |-> )'([^']*)'", r"\1\2", parameters)
    return f"```text\n{name}{parameters}\n```\n"


def _prose(found: Any) -> str:
    """A docstring with its sections as paragraphs and their entries as lists."""
    lines = []
    for line in (inspect.getdoc(found) or "").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            lines += [f"**{line[:-1]}**", ""]
        elif match := re.match(r"    ([\w, `*]+): (.*)", line):
            lines.append(f"- `{match[1].strip('`')}`: {match[2]}")
        else:
            lines.append(line.removeprefix("    ") if not line.startswith("        ") else f"  {line.strip()}")
    return "\n".join(lines).replace("<", "\\<")


PAGES = {"options.md": options, "cli.md": commands, "reference.md": reference}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
