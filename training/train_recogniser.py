"""Train the recogniser of pictures (`text`) or of clips (`video`) of shapes.

    python training/train_recogniser.py text --run runs/recogniser-text \
        --export shipped-models/src/relcache_models/recogniser-pictures

It learns from the generator's scenes, held-out pairs of colour and kind among them. A little blur and noise keep it
from judging by traits of the renderer. It takes minutes on two cores, and the same command resumes. It writes the
weights and, in `metrics.json`, the share of prompts that it finds in unseen renders without blur or noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from loop import Run, learning_rate
from relcache_models import shapes
from relcache_models.recogniser import Recogniser
from train_autoencoder import FRAMES, SIDE

UNSEEN = 1_000_000_000  # the first seed of unseen renders


def batch(task: str, number: int, seed: int) -> tuple[list[shapes.Prompt], dict[str, torch.Tensor], torch.Tensor]:
    """Return prompts, the labels of their scenes, and clips (number, frames, 3, side, side) in [0, 1]."""
    rng = random.Random(seed)
    prompts = [shapes.sample_prompt(rng, video=task == "video", held_out=None) for _ in range(number)]
    scenes = [shapes.compose(prompt, rng, frames=FRAMES[task]) for prompt in prompts]
    return prompts, shapes.labels(scenes), shapes.render(scenes, SIDE[task], seed)


def worn(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur half of `clips` (n, frames, 3, side, side) by one to two pixels, and add up to 4 % of noise to all."""
    flat = clips.flatten(0, 1)
    soft = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1).view_as(clips)
    share = torch.rand(len(clips), 1, 1, 1, 1, generator=generator) * 2 - 1
    level = 0.04 * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    return (torch.lerp(clips, soft, share.clamp(min=0)) + level * torch.randn(clips.shape, generator=generator)).clamp(
        0, 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("text", "video"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    config = {"side": SIDE[options.task], "frames": FRAMES[options.task]}
    model = Recogniser(**config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.02)
    run = Run(options.run, options.updates, model, every=250, ema=0.99, optimiser=optimiser)
    for update in run:
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * learning_rate(update, options.updates, cooldown=0.5)
        _, shown, clips = batch(options.task, options.batch, seed=update)
        loss = torch.zeros(())
        for name, logits in model(worn(clips, torch.Generator().manual_seed(update))).items():
            target = shown[name] if logits.ndim == 2 else shown[name][:, None].expand(logits.shape[:2])
            loss = loss + F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        run.done(options.batch, loss=loss.item())
    if not run.is_complete:
        return

    model.load_state_dict(run.average)
    model.eval()
    found: dict[str, list[torch.Tensor]] = {}
    for part in range(32):
        prompts, _, clips = batch(options.task, 64, seed=UNSEEN + part)
        for name, right in model.judge(clips, prompts).items():
            found.setdefault(name, []).append(right)
    metrics = {name: torch.cat(right).float().mean().item() for name, right in found.items()}
    metrics |= {"renders": 2048, "updates": run.update}
    print(metrics)
    options.export.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    temporary = options.export / "model.safetensors.tmp"
    save_file(half, temporary)
    os.replace(temporary, options.export / "model.safetensors")
    (options.export / "config.json").write_text(json.dumps(config) + "\n")
    shutil.copyfile(options.run / "loss.jsonl", options.export / "loss.jsonl")
    (options.export / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
