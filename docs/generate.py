"""Write docs/options.md, the reference of all options, from `rfdetr.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from rfdetr.config import KeypointTrainConfig, ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.options import Options

PAGE = Path(__file__).parent / "options.md"
HEAD = """# Options

Generated from `rfdetr/config.py` by `make docs`.

Options of the model go to the constructor, `RFDETRNano(resolution=512)`; where a size has its own value, the table of
sizes in the README wins over the default here. Options of a run go to `train()`. Unknown names are errors.
"""


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


def page() -> str:
    """The whole page."""
    parts = {
        "Model": table(ModelConfig),
        "Training": table(TrainConfig),
        "Training of segmentation models, further options": table(SegmentationTrainConfig, TrainConfig),
        "Training of keypoint models, other defaults": table(KeypointTrainConfig, TrainConfig),
    }
    return HEAD + "".join(f"\n## {title}\n\n{rows}\n" for title, rows in parts.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
