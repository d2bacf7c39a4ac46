"""`rfdetr train`: every option of the model and of the run, with the names that they have in Python."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfdetr.commands.generated import add_fields
from rfdetr.commands.parser import UsageError, add_config, exit_code
from rfdetr.commands.values import add_switch
from rfdetr.config import ModelConfig, SegmentationTrainConfig, TrainConfig, train_config_class
from rfdetr.export.files import SUFFIXES
from rfdetr.loading import size_class

if TYPE_CHECKING:
    from rfdetr.detr import RFDETR

# What the short help shows.
COMMON = {
    *("output_dir", "epochs", "batch_size", "grad_accum_steps", "lr", "resume", "seed", "devices", "num_workers"),
    *("early_stopping", "aug_config", "multi_scale", "run_test", "resolution", "pretrain_weights", "device"),
}
# The options of a run for any task: masks have some of their own, keypoints only other defaults.
RUN = SegmentationTrainConfig
OUTPUT = RUN.model_fields["output_dir"].default
# Where both have an option the model's is meant: the run takes it over.
SHARED = set(RUN.model_fields) & set(ModelConfig.model_fields)


def add_options(parser: argparse.ArgumentParser, everything: bool = False) -> None:
    """Add the options; the help lists those in `COMMON`, or everything."""
    parser.usage = "rfdetr train DATASET... [--model SIZE|FILE] [--epochs N] [--batch-size N] ..."
    parser.add_argument(
        "dataset_dir", metavar="DATASET", nargs="*", help="folder or data.yaml; several are joined by class name"
    )
    # Its name in Python.
    parser.add_argument("--dataset-dir", dest="dataset_option", metavar="DATASET", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(
        "--model", metavar="SIZE|FILE", help="size (nano, seg-nano, ...) or checkpoint to start from (default: nano)"
    )
    common = None if everything else COMMON
    add_fields(parser.add_argument_group("run"), RUN, common, leave_out={"dataset_dir", *SHARED})
    add_fields(parser.add_argument_group("model"), ModelConfig, common, leave_out={"model_name"})
    more = parser.add_argument_group("command")
    add_switch(more, "json", "print the results as JSON at the end")
    add_config(more)
    more.add_argument("--help-all", action="help", help="list every option of the run and of the model")
    parser.set_defaults(function=run, settings=settings)


def run(options: argparse.Namespace) -> int:
    """Train, and say where the weights are; bad options are an error before the weights are fetched."""
    name, of_model, of_run = _split(options)
    size = size_class(name)
    if size is not None:
        _checked(size, of_model, of_run)
    # They import PyTorch, which takes longer than the checks.
    from rfdetr.training.runtime import launched
    from rfdetr.training.seeds import seed_everything

    if of_run.get("seed") is not None:
        # Weights that no file brings are drawn here.
        seed_everything(of_run["seed"])
    model = _open(size, name, of_model)
    if size is None:
        _check(train_config_class(model.model_config), of_run)
    model.train(**of_run)
    if code := exit_code(model):
        return code
    if launched().is_first:
        _tell(options, of_run)
    return 0


def _tell(options: argparse.Namespace, of_run: dict[str, Any]) -> None:
    """Where the weights are, or for machines all results."""
    from rfdetr.training.state import BEST_TOTAL

    folder = Path(of_run.get("output_dir", OUTPUT)).expanduser()
    best, results = folder / BEST_TOTAL, folder / "results.json"
    if options.json:
        found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
        print(json.dumps({"output_dir": str(folder), "checkpoint": str(best), "results": found}, indent=1))
    elif best.is_file():
        print(f"the best weights are in {best}: rfdetr predict PICTURE --model {best}")


def _open(size: type[RFDETR] | None, name: str, options: dict[str, Any]) -> RFDETR:
    if size is not None:
        return size(**options)
    if Path(name).suffix.lower() in SUFFIXES:
        raise UsageError(f"{name} is an exported file, which cannot be trained; name the checkpoint it was made of")
    from rfdetr.detr import from_checkpoint

    return from_checkpoint(name, **options)


def settings(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, tuple[Any, str]]]:
    """The options that were given, for `--print-config`, and of the others default and help.

    Defaults are no options: a class count that is given, for instance, is kept whatever the data set has.
    """
    name, of_model, of_run = _split(options)
    size = size_class(name)
    given = {"model": name, **of_run, **of_model}
    if size is None:
        return given, {}
    model, run = _checked(size, of_model, of_run)
    defaults = {**run.record(), **model.record()}
    described = {**type(run).model_fields, **ModelConfig.model_fields}
    rest = {key: value for key, value in defaults.items() if key not in {*given, "model_name", "dataset_dir"}}
    return given, {key: (value, described[key].description or "") for key, value in rest.items()}


def _split(options: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Size or file, the options of the model, and those of the run.

    Raises:
        UsageError: no data set is named.
    """
    given = vars(options)
    name = given["model"] or _resumed(given.get("resume"), given.get("output_dir", OUTPUT)) or "nano"
    of_model = {key: given[key] for key in ModelConfig.model_fields if key in given}
    of_run = {key: given[key] for key in RUN.model_fields if key in given and key not in SHARED}
    datasets = of_run.pop("dataset_dir") or given.get("dataset_option")
    if datasets:
        of_run["dataset_dir"] = datasets[0] if len(datasets) == 1 else datasets
    elif "train" not in of_run:
        raise UsageError("no data set is named; give its folder: rfdetr train DATASET")
    for path in map(Path, datasets or []):
        # Before weights are fetched.
        if not path.expanduser().exists():
            raise UsageError(f"{path}: there is no such data set")
    return name, of_model, of_run


def _resumed(resume: Any, folder: str) -> str | None:
    """The file that a run goes on with, which tells the model; None where there is none."""
    if resume is not True:
        return resume or None
    from rfdetr.training.state import newest

    found = newest(Path(folder).expanduser())
    return str(found) if found else None


def _checked(size: type[RFDETR], of_model: dict[str, Any], of_run: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    try:
        model = size.get_model_config(**of_model)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return model, _check(train_config_class(model), of_run)


def _check(kind: type[TrainConfig], of_run: dict[str, Any]) -> TrainConfig:
    if others := [name for name in of_run if name not in kind.model_fields]:
        raise UsageError(f"{', '.join(others)}: only models that predict masks have such an option")
    try:
        return kind(**of_run)
    except ValueError as error:
        raise UsageError(str(error)) from None
