"""A training script, as a user would write one and start it alone or with a launcher; its argument says what to do.

`{"data": folder, "out": folder, "training": {...}, "class": name, "model": {...}, "signal": [number, step, rank]}` as
JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

import rfdetr
from tests.tiny import MODEL, TRAINING


def main(about: dict[str, Any]) -> None:
    """Train; send this process a signal before a step, if asked to."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = getattr(rfdetr, about.get("class", "RFDETRNano"))(**{**MODEL, **about.get("model", {})})
    if "signal" in about:
        number, step, rank = about["signal"]

        def send(info: dict[str, Any]) -> None:
            if info["step"] == step and int(os.environ.get("RANK", "0")) == rank:
                os.kill(os.getpid(), number)

        model.callbacks["on_train_batch_start"].append(send)
    model.train(dataset_dir=about["data"], output_dir=about["out"], **{**TRAINING, **about.get("training", {})})
    print("returned", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
