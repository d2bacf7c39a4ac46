"""Train with a loop of your own, in plain PyTorch: `model.module` is the network, a `torch.nn.Module`.

python examples/custom_loop.py path/to/dataset --epochs 10 --output trained
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader

from rfdetr import RFDETRNano
from rfdetr.datasets import build_dataset
from rfdetr.main import populate_args
from rfdetr.models import build_criterion_and_postprocessors
from rfdetr.util.get_param_dicts import get_param_dict
from rfdetr.util.misc import collate_fn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", help="folder in the layout of COCO or YOLO")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--output", default="trained", help="folder for the model")
options = parser.parse_args()

model = RFDETRNano(device=options.device)
settings = populate_args(**model.model_config.model_dump(), dataset_dir=options.dataset, multi_scale=False)
data = build_dataset("train", settings, model.model.resolution)
classes = data.annotations.categories
model.model.reinitialize_detection_head(classes.num_classes + 1)
model.model.class_names = list(classes.names)

criterion, _ = build_criterion_and_postprocessors(model.model.args)
network = model.to(options.device).module.train()
optimizer = torch.optim.AdamW(get_param_dict(settings, network))
loader = DataLoader(data, options.batch_size, shuffle=True, drop_last=True, collate_fn=collate_fn)
for epoch in range(options.epochs):
    for images, targets in loader:
        images = images.to(options.device)
        targets = [{name: value.to(options.device) for name, value in target.items()} for target in targets]
        loss = criterion.weighted_total(criterion(network(images.tensors, images.mask), targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
print("saved:", model.eval().save_pretrained(options.output))
