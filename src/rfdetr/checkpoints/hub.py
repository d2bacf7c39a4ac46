"""A model as a folder of the Hugging Face Hub: `model.safetensors`, `config.json`, a card; needs `rfdetr[hub]`.

The names are those of `huggingface_hub.PyTorchModelHubMixin`, so that its tools find what they look for.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfdetr.checkpoints.replacing import replacing
from rfdetr.checkpoints.save import description, published_weights
from rfdetr.extras import require
from rfdetr.loading import PRETRAINED
from rfdetr.models.lora import merged_state

if TYPE_CHECKING:
    from rfdetr.main import Model

WEIGHTS, CONFIG, CARD = PRETRAINED, "config.json", "README.md"
# What the metadata of a safetensors file call what it holds.
ABOUT = "rfdetr"


def save_pretrained(model: Model, folder: str | Path) -> Path:
    """Write the files, and return the folder; those of an earlier save are replaced, but for a card that is there.

    Raises:
        FileExistsError: the folder has one of the files, but not of an earlier save.
        ImportError: safetensors is not installed.
        RuntimeError: the weights were given up by `inference(inplace=True)`.
    """
    model.refuse_inplace("save_pretrained()")
    folder = Path(folder).expanduser()
    if any((folder / name).exists() for name in (WEIGHTS, CONFIG, CARD)) and not _is_ours(folder):
        raise FileExistsError(f"{folder} has files of another model, which are not replaced; give another folder")
    about = _about(model)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in published_weights(merged_state(model.model)).items()}
    data = require("safetensors.torch").save(weights, {"format": "pt", ABOUT: json.dumps(about)})
    with replacing(folder / WEIGHTS) as handle:
        handle.write(data)
    with replacing(folder / CONFIG, "w") as handle:
        json.dump({"library_name": "rfdetr", **about}, handle, indent=1)
    if not (folder / CARD).exists():
        (folder / CARD).write_text(_card(about), encoding="utf-8")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("library_name") == "rfdetr"
    except (OSError, ValueError, AttributeError):
        return False


def _about(model: Model) -> dict[str, Any]:
    origin = model.config.pretrain_weights
    # A path of this machine says nothing elsewhere.
    config = model.config.with_values({"pretrain_weights": origin and Path(origin).name, "device": "auto"})
    found = description(config, model.class_names)
    labels = {"class_labels": model.class_labels} if model.is_coco else {}
    return {**found, "args": {"class_names": list(model.class_names), **labels}, "thresholds": model.thresholds}


def _card(about: dict[str, Any]) -> str:
    name, config = about["model_name"], about["model_config"]
    task = "image-segmentation" if config["segmentation_head"] else "object-detection"
    return (
        f"---\nlibrary_name: rfdetr\nlicense: {str(config['license']).lower()}\npipeline_tag: {task}\n---\n\n"
        f"# {name}\n\nInput {config['resolution']} pixels; classes: {', '.join(about['args']['class_names'])}.\n\n"
        f'```python\nfrom rfdetr import RFDETR\n\nmodel = RFDETR.from_pretrained("this/repository")\n'
        'detections = model.predict("picture.jpg")\n```\n'
    )


def find_pretrained(name: str | Path, **options: Any) -> Path:
    """The weights in a folder of `save_pretrained`, or of a repository of the Hub, which is fetched into its cache.

    Args:
        options: of `huggingface_hub.hf_hub_download`, such as `revision`, `token`, `local_files_only`.

    Raises:
        FileNotFoundError: a folder without the file.
        ImportError: huggingface_hub is not installed.
        OSError: the repository cannot be read; what huggingface_hub says.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"{folder} has no {WEIGHTS}; a folder that save_pretrained() wrote is needed")
        return folder / WEIGHTS
    return Path(require("huggingface_hub").hf_hub_download(str(name), WEIGHTS, **options))


def push_to_hub(model: Model, repo_id: str, *, private: bool | None = None, **options: Any) -> str:
    """Upload the files of `save_pretrained` to a repository, which is created where it is missing; returns its address.

    Args:
        options: of `huggingface_hub.HfApi.upload_folder`, such as `commit_message`, `token`, `revision`.
    """
    api = require("huggingface_hub").HfApi(token=options.get("token"))
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        if api.file_exists(repository.repo_id, CARD):
            # Somebody may have written it by hand.
            (Path(folder) / CARD).unlink()
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, **options)
    return str(repository)


def read_safetensors(path: Path) -> dict[str, Any]:
    """A safetensors file as the dict of a checkpoint; one that does not say what it is brings its weights alone.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is damaged.
    """
    library, load = require("safetensors"), require("safetensors.torch").load_file
    try:
        with library.safe_open(path, "pt") as handle:
            about = json.loads((handle.metadata() or {}).get(ABOUT, "{}"))
        return {**(about if isinstance(about, dict) else {}), "model": load(path)}
    except (library.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint {path} is no readable safetensors file: {error}") from None
