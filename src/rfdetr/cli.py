"""The command line: `rfdetr demo`, `check`, `evaluate`, `pack`, `predict`, `export`, `bench`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rfdetr
from rfdetr.export.command import add_bench, add_export
from rfdetr.export.files import SUFFIXES
from rfdetr.inference.command import add_predict


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="rfdetr", description="Real-time detection transformers for your own data.")
    parser.add_argument("--version", action="version", version=f"rfdetr {rfdetr.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_check(commands)
    _add_evaluate(commands)
    _add_pack(commands)
    add_predict(commands)
    add_export(commands)
    add_bench(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    # Threads that wait by spinning starve each other when something else uses the cores. It is read when PyTorch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _plain_warnings():
            return options.run(options)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough; Python would complain of it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        print(f"rfdetr: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rfdetr: interrupted", file=sys.stderr)
        return 130


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"rfdetr: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _positive(kind: type) -> Callable[[str], Any]:
    """What argparse makes of a number that has to be above 0."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    number.__name__ = "number above 0"
    return number


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="train, evaluate and show a detector on drawn pictures")
    demo.add_argument(
        "--task",
        choices=["detect", "segment", "keypoints"],
        default="detect",
        help="what to learn (default: %(default)s)",
    )
    demo.add_argument(
        "--weights", metavar="FILE", help="fine-tune this checkpoint of the task instead of starting fresh"
    )
    demo.add_argument("--output", metavar="DIR", default="demo", help="folder to write to (default: %(default)s)")
    demo.add_argument("--epochs", type=_positive(int), help="passes over the drawn pictures")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from rfdetr.demo import run_demo

    run_demo(options.output, weights=options.weights, epochs=options.epochs, task=options.task)
    return 0


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dataset", metavar="DATASET", nargs="+", help="folder or data.yaml; several are joined by class name"
    )
    command.add_argument(
        "--dataset-file",
        choices=["roboflow", "coco", "yolo", "o365", "webdataset"],
        default="roboflow",
        help="layout; roboflow looks at the folder (default)",
    )


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check", help="look through a data set before training", description="Exit code 1: training would not start."
    )
    _add_data(check)
    check.add_argument(
        "--task",
        choices=["detect", "segment", "keypoints"],
        help="what the data is for (default: boxes are checked; --fix writes all there is)",
    )
    check.add_argument(
        "--resolution", type=_positive(int), default=384, help="side of the network input (default: %(default)s)"
    )
    check.add_argument(
        "--num-queries", type=_positive(int), default=300, help="objects a model can find (default: %(default)s)"
    )
    check.add_argument("--decode", action="store_true", help="decode every picture, which finds damaged ones")
    check.add_argument("--no-contents", action="store_true", help="do not look for equal pictures, which reads them")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--fix", metavar="OUT", help="write the data set, without what is wrong in it, to a new folder")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from rfdetr.datasets.examine import examine

    source = _source(options)
    settings = {"resolution": options.resolution, "num_queries": options.num_queries}
    examined = examine(source, contents=not options.no_contents, decode=options.decode, **settings)
    print(json.dumps(examined.report.as_dict(), indent=1) if options.json else examined.report.text())
    if options.fix:
        _fix(source, Path(options.fix).expanduser(), options.task)
        return 0
    return 1 if examined.report.fatal else 0


def _fix(source: Any, folder: Path, task: str | None) -> None:
    from rfdetr.datasets.annotations import SPLIT_FOLDERS
    from rfdetr.datasets.examine import Examined, examine, richest, with_outlines

    whole = examine(richest(source) if task is None else source, contents=False)
    if task is None:
        whole = Examined(with_outlines(whole.splits, source), whole.report)
    is_yolo = bool(whole.splits["train"].normalized.all()) if "train" in whole.splits else False
    for repair in whole.write(folder, is_yolo):
        print(f"{repair.kind}: {repair.count} (first: {repair.example})", file=sys.stderr)
    if lost := [split for split in SPLIT_FOLDERS if source.has(split) and split not in whole.splits]:
        print(f"left out, since it cannot be read: {', '.join(lost)}", file=sys.stderr)
    print(f"the repaired data set is in {folder}", file=sys.stderr)


def _source(options: argparse.Namespace) -> Any:
    from rfdetr.datasets.source import DataSource

    task = {"masks": options.task == "segment", "keypoints": options.task == "keypoints"}
    return DataSource([Path(path) for path in options.dataset], {}, options.dataset_file, **task)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="judge a checkpoint or an exported file on a data set")
    evaluate.add_argument("model", metavar="MODEL", help="checkpoint (.pth) or exported file (.onnx, .xml, ...)")
    _add_data(evaluate)
    evaluate.add_argument("--split", default="test", help="test, val or train (default: %(default)s)")
    evaluate.add_argument("--output", metavar="DIR", default="evaluation", help="report (default: %(default)s)")
    evaluate.add_argument("--no-report", action="store_true", help="print the numbers alone")
    evaluate.add_argument("--class-names", metavar="A,B", help="what the model calls each class of the data set")
    evaluate.add_argument(
        "--batch-size", type=_positive(int), default=4, help="pictures per step (default: %(default)s)"
    )
    evaluate.add_argument("--num-workers", type=int, help="processes that load pictures")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.add_argument("--device", help="cpu, cuda, ... (default: what is there)")
    evaluate.add_argument("--save-thresholds", metavar="FILE", help="write the checkpoint with the best thresholds")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    exported = Path(options.model).suffix in SUFFIXES
    if options.save_thresholds and exported:
        raise ValueError("--save-thresholds writes checkpoints; an exported file keeps the thresholds it has")
    if options.save_thresholds and Path(options.save_thresholds).expanduser().exists():
        raise FileExistsError(f"{options.save_thresholds} exists, and nothing is overwritten; name another file")
    given = {"device": options.device} if options.device else {}
    model: Any = rfdetr.load(options.model, **given) if exported else rfdetr.from_checkpoint(options.model, **given)
    names = [name.strip() for name in (options.class_names or "").split(",")]
    more: dict[str, Any] = {"class_names": names} if options.class_names else {}
    more |= {"num_workers": options.num_workers} if options.num_workers is not None else {}
    metrics = model.evaluate(
        options.dataset,
        split=options.split,
        report_dir=None if options.no_report else options.output,
        dataset_file=options.dataset_file,
        eval_batch_size=options.batch_size,
        progress_bar="tqdm" if sys.stderr.isatty() else None,
        **more,
    )
    if options.save_thresholds:
        from rfdetr.checkpoints.download import find_weights
        from rfdetr.checkpoints.load import store_thresholds

        target = Path(options.save_thresholds).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        store_thresholds(find_weights(options.model), target, model.model.thresholds)
    if options.json:
        print(json.dumps(metrics, indent=1))
    else:
        print("\n".join(f"{name:24}{value:8.4f}" for name, value in metrics.items()))
    return 0


def _add_pack(commands: Any) -> None:
    pack = commands.add_parser("pack", help="pack a data set into tar files, which are trained on as they are")
    _add_data(pack)
    pack.add_argument("output", metavar="OUT", help="folder for the tar files")
    pack.add_argument(
        "--task", choices=["detect", "segment", "keypoints"], help="what is packed (default: all there is)"
    )
    pack.add_argument(
        "--max-shard-mb", type=_positive(float), default=500, help="size of a tar file (default: %(default)s)"
    )
    pack.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> int:
    from rfdetr.datasets.annotations import SPLIT_FOLDERS, AnnotationSet
    from rfdetr.datasets.examine import richest, with_outlines
    from rfdetr.datasets.pack import pack

    source = _source(options)
    source = richest(source) if options.task is None else source
    splits: dict[str, AnnotationSet] = {}
    for split in SPLIT_FOLDERS:
        if source.has(split):
            splits[split] = source.read(split, next(iter(splits.values()), None))
    if not splits:
        raise FileNotFoundError(f"{source} has no split of the layout {options.dataset_file}")
    for split, packed in (with_outlines(splits, source) if options.task is None else splits).items():
        for repair in pack(packed, Path(options.output).expanduser(), split, options.max_shard_mb):
            print(f"{split}: {repair.kind}: {repair.count} (first: {repair.example})", file=sys.stderr)
        print(f"{split}: {len(packed)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
