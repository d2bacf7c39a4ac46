"""The command line as a whole: help, start-up, misspelt names, configuration files, exit codes, the older form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.small_world import shrink
from tests.tiny import tiny_data

import rfdetr
from rfdetr import cli, detr
from rfdetr.commands.values import accepted, to_value
from rfdetr.config import ModelConfig, SegmentationTrainConfig

# What makes a training run of seconds; also a file that people write.
SMALL = """
encoder: dinov2_windowed_tiny
out-feature-indexes: [2, 4, 6]
pretrain_weights: null
resolution: 48
num_windows: 1
num_queries: 10
num_select: 10
group_detr: 1
multi_scale: false
scale_jitter: false
tensorboard: false
epochs: 1
grad_accum_steps: 1
num_workers: 0
device: cpu
"""


def usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with exit code 2, the same whether argparse or we noticed."""
    try:
        code: Any = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_fits_a_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: rfdetr {name}")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_the_help_of_all_commands_names_each_with_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name}" in out
        assert command.help in out


def test_the_help_loads_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from rfdetr import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'pydantic', 'numpy', 'PIL', 'supervision'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "set()"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "rfdetr", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"rfdetr {rfdetr.__version__}\n")


def test_every_option_of_model_and_run_is_an_option_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help-all"])
    out = capsys.readouterr().out
    for config in (ModelConfig, SegmentationTrainConfig):
        for name in config.model_fields.keys() - {"dataset_dir", "model_name"}:
            dashed = name.replace("_", "-")
            assert f"--{dashed} " in out or f"--[no-]{dashed}" in out or f"--{dashed}\n" in out, name


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "12", 12),
        ("lr", "1e-3", 1e-3),
        ("batch_size", "auto", "auto"),
        ("batch_size", "8", 8),
        ("seed", "none", None),
        # words stay words where nothing else is taken
        ("project", "7", "7"),
        ("run", "true", "true"),
        ("devices", "0,1", [0, 1]),
        ("devices", "[0, 1]", [0, 1]),
        ("devices", "auto", "auto"),
        ("class_names", "cat,dog", ["cat", "dog"]),
        ("class_names", "cat", ["cat"]),
        ("class_names", "1,true", ["1", "true"]),
        ("keypoint_oks_sigmas", "0.1,0.2", [0.1, 0.2]),
        ("aug_config", '{"HorizontalFlip": {"p": 0.5}}', {"HorizontalFlip": {"p": 0.5}}),
        ("aug_config", "aerial", "aerial"),
        ("multi_scale", "per-batch", "per-batch"),
        ("multi_scale", "False", False),
        ("train", "a/train.json", "a/train.json"),
        ("cache", "ram", "ram"),
    ],
)
def test_a_text_is_the_value_that_it_would_be_in_python(field: str, text: str, value: Any) -> None:
    assert to_value(text, accepted(SegmentationTrainConfig.model_fields[field].annotation)) == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "there is no command 'trian' (did you mean train?)"),
        (["fit"], "(did you mean train?)"),
        (["train", "data", "--epoch", "3"], "--epoch (did you mean --epochs?)"),
        (["train"], "no data set is named"),
        (["train", "nowhere"], "nowhere: there is no such data set"),
        (["train", ".", "--epochs", "ten"], "epochs='ten'"),
        (["train", ".", "--lr", "-1"], "lr=-1: Input should be greater than 0"),
        (["train", ".", "--resolution", "500"], "resolution=500 is not divisible by 32"),
        (["train", ".", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["predict"], "SOURCE"),
        (["predict", "x.png", "--threshold", "high"], "number or auto"),
        (["download"], "name what to fetch, or --all"),
        (["evaluate", "w.pth", "data", "--batch-size", "0"], "number above 0"),
        (["train", ".", "--no-resume", "foo"], "--no-resume takes no value, but 'foo' follows it"),
        (["predict", "x.png", "--batch-size", "0"], "number above 0"),
        (["evaluate", "w.pth", "data", "--save-thresholds", "t.safetensors"], "checkpoints end with .pth or .pt"),
        (["train", ".", "--mask-dice-loss-coef", "3"], "only models that predict masks have such an option"),
        (["train", ".", "--model", "w.onnx"], "w.onnx is an exported file, which cannot be trained"),
        (["train", ".", "--config"], "expected one argument"),
        (["completion", "cmd"], "cmd"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in usage_error(arguments, capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "there is no option 'epoch' (did you mean epochs?)"),
        ("- 1", "must hold options by name"),
        ("a: [", "is no YAML"),
        ("epochs: ten", "epochs='ten'"),
        ("run_test: 3", "run_test=3: it must be true or false"),
        ("!!python/object/apply:os.system [touch x]", "is no YAML"),
    ],
)
def test_a_wrong_configuration_file_is_named(
    text: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text, encoding="utf-8")
    assert said in usage_error(["train", ".", "--config", "c.yaml"], capsys)
    assert not Path("x").exists()


# A command line that says something, and what has to come out of a file with the same.
LINES = {
    "predict": "predict x.png --model w.pth --save --resolution 480x640 --nms 0.5 --no-show-boxes --json",
    "evaluate": "evaluate w.pth data more --split val --no-report --class-names 1,b --eval-max-dets 7",
    "export": "export nano --shape 320 --batch-size 2 --half --format openvino",
    "check": "check data more --task segment --no-contents --num-queries 5",
    "pack": "pack data out --max-shard-mb 2.5",
    "bench": "bench nano --batch 1,2 --backends torch --random",
}


@pytest.mark.parametrize("name", LINES)
def test_a_printed_configuration_says_what_was_typed(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = cli.parse(LINES[name].split())
    assert cli.main([*LINES[name].split(), "--print-config"]) == 0
    Path("c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    again = cli.parse([name, "--config", "c.yaml"])
    # Defaults of both too, such as a task that is None.
    assert vars(again) == {**vars(typed), "config": "c.yaml"}


def test_what_is_typed_wins_over_a_file_also_when_it_turns_something_off(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "json: true\nsave: true\nmodel: 3\nbatch-size: 2\nresolution: 256\nshow_boxes: false", encoding="utf-8"
    )
    options = cli.parse(["predict", "x.png", "--config", str(path), "--json=false", "--batch_size", "5"])
    assert (options.json, options.batch_size, options.save, options.model) == (False, 5, "predictions", "3")
    assert (options.resolution, options.show_boxes) == ((256, 256), False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_size: 2.5", "batch_size=2.5: it must be a number above 0"),
        ("json: 'no'", "json='no': it must be true or false"),
        ("threshold: high", "threshold='high': it must be a number or auto"),
    ],
)
def test_a_value_in_a_file_is_refused_as_if_it_had_been_typed(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert said in usage_error(["predict", "x.png", "--config", str(path)], capsys)


def test_a_run_from_a_file_and_one_from_its_printed_configuration_are_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_data(tmp_path / "dataset")
    Path("c.yaml").write_text(SMALL, encoding="utf-8")
    typed = [
        "train",
        "--dataset_dir",
        "dataset",
        "--config=c.yaml",
        "--output_dir",
        "a",
        "--seed",
        "3",
        "--run-test=false",
    ]
    assert cli.main([*typed, "--print-config"]) == 0
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed, encoding="utf-8")
    values = yaml.safe_load(printed)
    assert values["dataset_dir"] == "dataset"
    assert (values["resolution"], values["run_test"], values["epochs"]) == (48, False, 1)
    # Defaults are told, but not set: a class count that is given would be kept whatever the data set has.
    assert "num_classes" not in values
    assert "# num_classes: 90  # " in printed
    assert cli.main(typed) == 0
    assert "best weights are in a/checkpoint_best_total.pth" in capsys.readouterr().out
    assert cli.main(["train", "--config", "printed.yaml", "--output-dir", "b", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["checkpoint"] == "b/checkpoint_best_total.pth"
    assert said["results"] == json.loads(Path("b/results.json").read_text(encoding="utf-8"))
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if "time" not in k}
            for line in Path(run, "log.txt").read_text(encoding="utf-8").splitlines()
        ]
        for run in ("a", "b")
    ]
    assert logs[0] == logs[1]
    # Files tell what they are, and what one has that the other has not.
    assert cli.main(["info", "a/checkpoint_best_total.pth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["class"], found["task"], found["input"]) == ("RFDETRNano", "detect", 48)
    assert found["can_resume"] is False
    assert cli.main(["info", "a/checkpoint.pth"]) == 0
    assert "can resume    True" in capsys.readouterr().out
    assert cli.main(["diff", "a/checkpoint_best_total.pth", "b/checkpoint_best_total.pth", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["output_dir"]
    # What is no class any more: an exported file beside its checkpoint is the same as far as it knows.
    assert cli.main(["export", "a/checkpoint_best_total.pth", "--output-dir", "exported"]) == 0
    capsys.readouterr()
    assert cli.main(["diff", "a/checkpoint_best_total.pth", "exported/inference_model.onnx", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == []
    assert cli.main(["diff", "a/checkpoint.pth", "a/checkpoint.pth"]) == 0
    assert capsys.readouterr().out == "no setting differs\n"
    # The model of a run that is gone on with is that of its file.
    assert cli.main(["train", "--config", "printed.yaml", "--output-dir", "a", "--epochs", "2", "--resume"]) == 0
    assert len(Path("a/log.txt").read_text(encoding="utf-8").splitlines()) == 2
    # What says nothing of the model finds it in the folder.
    more = ["--output-dir", "a", "--epochs", "3", "--resume", "--no-tensorboard", "--num-workers", "0"]
    assert cli.main(["train", "dataset", *more, "--no-multi-scale", "--grad-accum-steps", "1", "--no-run-test"]) == 0
    assert len(Path("a/log.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_a_file_where_the_run_should_write_is_named_before_anything_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(SMALL, encoding="utf-8")
    Path("data").mkdir()
    assert cli.main(["train", "data", "--config", "c.yaml", "--output-dir", "c.yaml/run"]) == 1
    assert "c.yaml is a file; give a folder" in capsys.readouterr().err
    assert Path("c.yaml").read_text(encoding="utf-8") == SMALL


def test_an_interrupted_run_has_the_exit_code_of_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(detr.RFDETRNano):
        def train(self, **options: Any) -> None:
            self.model.ended_by = 2

    monkeypatch.setattr(detr, "RFDETRNano", Interrupted)
    (tmp_path / "c.yaml").write_text(SMALL, encoding="utf-8")
    assert cli.main(["train", str(tmp_path), "--config", str(tmp_path / "c.yaml")]) == 130


def test_the_models_are_listed_with_licence_and_what_is_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RF_HOME", str(tmp_path))
    (tmp_path / "rf-detr-nano.pth").write_bytes(b"0" * 2_000_000)
    assert cli.main(["models", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["nano"]["cached"] == str(tmp_path / "rf-detr-nano.pth")
    assert rows["small"]["cached"] is None
    assert {name for name, row in rows.items() if row["licence"] == "PML-1.0"} == {"xlarge", "2xlarge"}
    assert cli.main(["models"]) == 0
    assert "384  Apache-2.0  rf-detr-nano.pth                    2 MB" in capsys.readouterr().out


def test_downloaded_files_are_printed_and_licensed_ones_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink("nano", tmp_path, monkeypatch)
    assert cli.main(["download", "nano", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"nano": str(tmp_path / "rf-detr-nano.pth")}
    assert cli.main(["download", "2xlarge"]) == 1
    assert "Platform Model License" in capsys.readouterr().err


def test_an_exported_file_tells_what_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink("nano", tmp_path, monkeypatch)
    assert cli.main(["export", "nano", "--output-dir", str(tmp_path), "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert cli.main(["info", str(tmp_path / "inference_model.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == exported
    assert (exported["class"], exported["batch"], exported["parity"]["matched"]) == ("RFDETRNano", "any", 1.0)


def test_a_file_that_is_no_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"nothing")
    for arguments in (["info", str(tmp_path / "x.pth")], ["diff", str(tmp_path / "x.pth"), "y.pth"]):
        assert cli.main(arguments) == 1
        assert "x.pth" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh", "powershell"])
def test_there_is_a_completion_script_for_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert "rfdetr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rfdetr ev", ["evaluate"]),
        ("rfdetr train --grad-a", ["--grad-accum-steps"]),
        ("rfdetr export nano --format open", ["openvino"]),
        ("rfdetr predict --no-show", ["--no-show-boxes"]),
    ],
)
def test_bash_really_completes(line: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "c.sh").write_text(capsys.readouterr().out, encoding="utf-8")
    typed = line.split()
    code = (
        f"source {tmp_path / 'c.sh'}; COMP_WORDS=({line}); COMP_CWORD={len(typed) - 1}; COMP_LINE='{line}'; "
        f"COMP_POINT={len(line)}; COMP_TYPE=9; _python_argcomplete rfdetr {typed[-1]} {typed[-2]}; "
        "echo ${COMPREPLY[@]}"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path}
    )
    assert done.stdout.split() == words, done.stderr


class Trained(detr.RFDETRBase):
    """Base that records what it would be trained on."""

    asked: Any = None

    def __init__(self) -> None:
        """Without a network, and as if it had been interrupted."""
        self.model = SimpleNamespace(ended_by=2)

    def train(self, **options: Any) -> None:
        """Record it."""
        type(self).asked = options


def test_the_older_command_trains_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detr, "RFDETRBase", Trained)
    with pytest.warns(FutureWarning, match="rfdetr train DIR --model base"):
        assert cli.main(["--coco_dir", str(tmp_path)]) == 130
    assert Trained.asked == {"dataset_dir": str(tmp_path)}


@pytest.mark.filterwarnings("ignore:rfdetr --coco_dir:FutureWarning")
def test_the_older_command_fetches_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Roboflow:
        """Records the calls of the chain."""

        def __init__(self, api_key: str) -> None:
            asked.append(api_key)

        def __getattr__(self, name: str) -> Any:
            return lambda value: asked.append((name, value)) or self

        def download(self, kind: str) -> Any:
            asked.append(("download", kind))
            return SimpleNamespace(location=str(tmp_path))

    monkeypatch.setitem(sys.modules, "roboflow", SimpleNamespace(Roboflow=Roboflow))
    monkeypatch.setattr(detr, "RFDETRBase", Trained)
    monkeypatch.delenv("ROBOFLOW_API_KEY", raising=False)
    project = ["--workspace", "w", "--project_name", "p", "--dataset_version", "3"]
    assert "--api_key" in usage_error(project, capsys).splitlines()[-1]
    assert cli.main(["--api_key", "k", *project]) == 130
    assert asked == ["k", ("workspace", "w"), ("project", "p"), ("version", 3), ("download", "coco")]
    assert Trained.asked == {"dataset_dir": str(tmp_path)}
