"""Optional packages: which extra brings each of them, and the one way to import one."""

from __future__ import annotations

import importlib
from types import ModuleType

# import name: (extra of this package, what it is for)
EXTRAS = {
    "simplejpeg": ("fast", "faster JPEG decoding"),
    "albumentations": ("aug", "augmentations beyond the built-in ones"),
    "tensorboard": ("loggers", "TensorBoard logging"),
    "wandb": ("loggers", "logging to Weights & Biases"),
    "mlflow": ("loggers", "logging to MLflow"),
    "clearml": ("clearml", "logging to ClearML"),
    "av": ("video", "reading videos and cameras"),
    "openvino": ("openvino", "OpenVINO files"),
    "tensorrt": ("tensorrt", "TensorRT engines"),
    "coremltools": ("coreml", "Core ML packages"),
    "executorch": ("executorch", "ExecuTorch files"),
    "litert_torch": ("litert", "writing LiteRT files"),
    "ai_edge_litert": ("litert", "running LiteRT files"),
    "onnxslim": ("onnx", "simplifying ONNX files"),
    "roboflow": ("roboflow", "deploying to Roboflow"),
    "rich": ("rich", "the progress bar of rich"),
    "pycocotools": ("coco", "the evaluator of pycocotools"),
    "safetensors": ("hub", "safetensors files"),
    "huggingface_hub": ("hub", "the Hugging Face Hub"),
    "starlette": ("serve", "the web page"),
    "uvicorn": ("serve", "the web page"),
    "argcomplete": ("cli", "shell completion"),
    "onnx": ("onnx", "exporting to ONNX"),
    "onnxruntime": ("onnx", "running ONNX files"),
    "matplotlib": ("visual", "drawing plots"),
    "yaml": ("data", "reading YOLO data sets"),
}


def require(name: str) -> ModuleType:
    """Import an optional package, or a module such as `torch.utils.tensorboard` that needs one.

    Raises:
        ImportError: it is not installed; the message says what needs it and the pip command.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".", maxsplit=1)[0]
        if missing not in EXTRAS:
            raise
        extra, purpose = EXTRAS[missing]
        raise ImportError(f'{purpose} needs {missing}: pip install "rfdetr[{extra}]"') from error
