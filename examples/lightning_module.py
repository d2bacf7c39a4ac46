"""Train with Lightning: a LightningModule around `model.module`, with the losses of RF-DETR.

pip install pytorch-lightning
python examples/lightning_module.py path/to/dataset --epochs 10 --output trained.ckpt
"""

from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from rfdetr import RFDETRNano
from rfdetr.datasets import build_dataset
from rfdetr.main import populate_args
from rfdetr.models import build_criterion_and_postprocessors
from rfdetr.util.get_param_dicts import get_param_dict
from rfdetr.util.misc import collate_fn


class Detection(pl.LightningModule):
    """Named `model`, the network's weights are found in the checkpoint by `RFDETRNano(pretrain_weights=...)`."""

    def __init__(self, model: RFDETRNano) -> None:
        super().__init__()
        self.model, self.settings = model.module, model.model.args
        self.criterion, _ = build_criterion_and_postprocessors(self.settings)

    def on_train_epoch_start(self) -> None:
        self.train()

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        images, targets = batch
        loss = self.criterion.weighted_total(self.criterion(self.model(images.tensors, images.mask), targets))
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(get_param_dict(self.settings, self.model))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", help="folder in the layout of COCO or YOLO")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--output", default="trained.ckpt", help="checkpoint to write")
options = parser.parse_args()

model = RFDETRNano()
settings = populate_args(**model.model_config.model_dump(), dataset_dir=options.dataset, multi_scale=False)
data = build_dataset("train", settings, model.model.resolution)
model.model.reinitialize_detection_head(data.annotations.categories.num_classes + 1)
loader = DataLoader(data, options.batch_size, shuffle=True, drop_last=True, collate_fn=collate_fn)
trainer = pl.Trainer(max_epochs=options.epochs, gradient_clip_val=0.1, log_every_n_steps=1)
trainer.fit(Detection(model), loader)
trainer.save_checkpoint(options.output)
