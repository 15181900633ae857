"""Train the small Fashion-MNIST classifier that relcache ships.

    python training/train_classifier.py --export shipped-models/src/relcache_models/classifier-fashion-mnist

It takes minutes on two cores, and writes the weights and, in `metrics.json`, the accuracy on the test set.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import fashion_mnist
from relcache_models.classifier import Classifier


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift a batch (n, 1, 28, 28) by up to two pixels in each direction; fill the border with background."""
    down, right = torch.randint(0, 5, (2,), generator=generator).tolist()
    return F.pad(images, (2, 2, 2, 2))[..., down : down + 28, right : right + 28]


@torch.no_grad()
def accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of `images` (n, 1, 28, 28) whose most likely class is its label (n,)."""
    model.eval()
    right = sum(
        (model(images[i : i + 500]).argmax(1) == labels[i : i + 500]).sum().item() for i in range(0, len(images), 500)
    )
    model.train()
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the four IDX files")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    images, labels = fashion_mnist.load("train", options.data)
    images = images.float() / 255
    test_images, test_labels = fashion_mnist.load("test", options.data)
    test_images = test_images.float() / 255

    model = Classifier().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    updates = options.epochs * (len(images) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=updates)
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(images), generator=generator).split(options.batch):
            if len(rows) < options.batch:
                continue
            loss = F.cross_entropy(model(shifted(images[rows], generator)), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}: loss {loss.item():.3f}, test {accuracy(model, test_images, test_labels):.4f}",
            flush=True,
        )

    options.export.mkdir(parents=True, exist_ok=True)
    temporary = options.export / "model.safetensors.tmp"
    save_file(model.eval().state_dict(), temporary)
    os.replace(temporary, options.export / "model.safetensors")
    metrics = {
        "test_accuracy": accuracy(model, test_images, test_labels),
        "epochs": options.epochs,
        "seed": options.seed,
    }
    (options.export / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
