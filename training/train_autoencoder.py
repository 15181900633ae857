"""Train the autoencoder of small-flux (`text`) or of small-video (`video`) on scenes of shapes.

    python training/train_autoencoder.py text --run runs/autoencoder-text
    python training/train_autoencoder.py video --run runs/autoencoder-video --batch 8 --learning-rate 1e-3

The networks are small ones of diffusers' classes. `AutoencoderKL` compresses each side by 4, to 8 channels;
`AutoencoderKLHunyuanVideo` compresses time by 4 as well, to 16. The video autoencoder starts from the inflated one of
pictures (`--pictures`): each convolution reads only the newest frame, and learns to use the earlier ones from clips.
The same command resumes. At the end the run folder has `reconstruction.png`, and `autoencoder/` in diffusers' format.
Its scaling factor gives latents unit variance.
"""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo
from PIL import Image
from torch import nn

from loop import Run, learning_rate
from muon import Muon
from relcache_models import shapes

SIDE = {"text": 64, "video": 48}
FRAMES = {"text": 1, "video": 9}
CHANNELS = {"text": 8, "video": 16}


def build(task: str, **changes: float) -> nn.Module:
    """Return the untrained autoencoder of `task`."""
    if task == "text":
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 48),
            layers_per_block=1,
            latent_channels=CHANNELS[task],
            norm_num_groups=8,
            sample_size=SIDE[task],
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            force_upcast=False,
            **{"scaling_factor": 1.0, "shift_factor": 0.0} | changes,
        )
    return AutoencoderKLHunyuanVideo(
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=CHANNELS[task],
        norm_num_groups=8,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        mid_block_add_attention=False,
        **{"scaling_factor": 1.0} | changes,
    )


@torch.no_grad()
def inflate(autoencoder: AutoencoderKLHunyuanVideo, pictures: AutoencoderKL) -> None:
    """Give `autoencoder` the weights of `pictures`; in convolutions over time only the newest frame's are not 0."""

    def flat(name: str) -> str:
        return re.sub(r"(\.conv)+\.(weight|bias)", r".\2", name)

    weights = {flat(name): value for name, value in pictures.state_dict().items()}
    channels = pictures.config.latent_channels
    for name, value in autoencoder.state_dict().items():
        if "quant_conv" in name:  # the autoencoder of pictures has none
            value.copy_(torch.eye(len(value))[..., None, None, None] if value.ndim == 5 else torch.zeros(len(value)))
            continue
        source = weights[flat(name)]
        if value.ndim == 5:
            source = F.pad(source.view(*source.shape[:2], 1, *value.shape[3:]), (0, 0, 0, 0, value.shape[2] - 1, 0))
        # Channels that pictures lack keep their first weights.
        if name.startswith("encoder.conv_out"):
            for target, part in zip(value.chunk(2), source.chunk(2), strict=True):  # mean, logarithm of the variance
                target[:channels] = part
        elif name == "decoder.conv_in.conv.weight":
            value[:, :channels] = source
        else:
            value.copy_(source)


def scenes(
    task: str, number: int, seed: int, window: slice = slice(None), open_colours: float = 0.0
) -> tuple[list[shapes.Prompt], list[shapes.Scene], torch.Tensor]:
    """Return random training prompts, their scenes, and pictures (number, 3, side, side) of them in [-1, 1].

    Clips are (number, 3, frames, side, side); `window` selects some of their frames. `open_colours` is the share of
    shapes whose colour is left open.
    """
    rng = random.Random(seed)
    prompts = [shapes.sample_prompt(rng, video=task == "video", open_colours=open_colours) for _ in range(number)]
    composed = [shapes.compose(prompt, rng, frames=FRAMES[task]) for prompt in prompts]
    composed = [replace(scene, path=tuple(path[window] for path in scene.path)) for scene in composed]
    pixels = shapes.render(composed, SIDE[task], seed) * 2 - 1
    return prompts, composed, pixels.transpose(1, 2) if task == "video" else pixels[:, 0]


@torch.no_grad()
def sheet(task: str, autoencoder: nn.Module, path: Path) -> float:
    """Write rows of unseen scenes, originals above reconstructions; return their mean PSNR in dB."""
    _, _, pixels = scenes(task, 16, seed=-1)
    again = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    errors = ((again - pixels) / 2).square().flatten(1).mean(1)
    if task == "video":
        pixels, again = (clips[:4].transpose(1, 2).flatten(0, 1) for clips in (pixels, again))
    columns = 8 if task == "text" else FRAMES[task]
    rows = []
    for start in range(0, len(pixels), columns):
        rows += [pixels[start : start + columns], again[start : start + columns]]
    picture = torch.cat([torch.cat(list(row), -1) for row in rows], -2)
    bytes_ = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(bytes_).resize((2 * bytes_.shape[1], 2 * bytes_.shape[0]), Image.Resampling.NEAREST).save(path)
    return float((-10 * errors.log10()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("text", "video"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--kl", type=float, default=2e-4, help="weight of the KL divergence per latent value, in nats")
    parser.add_argument("--measured", type=int, default=256, help="scenes that set the scale of the latents at the end")
    parser.add_argument("--pictures", type=Path, default=Path("runs/autoencoder-text/autoencoder"),
                        help="the autoencoder of pictures that the one of clips starts from")  # fmt: skip
    options = parser.parse_args()

    torch.manual_seed(0)
    autoencoder = build(options.task).train()
    if options.task == "video":
        inflate(autoencoder, AutoencoderKL.from_pretrained(options.pictures))
        autoencoder.to(memory_format=torch.channels_last_3d)  # faster on a CPU
    inside = [weight for name, weight in autoencoder.named_parameters() if weight.ndim > 2 and "block" in name]
    outside = [weight for weight in autoencoder.parameters() if not any(weight is other for other in inside)]
    muon = Muon(inside, lr=options.learning_rate)
    adam = torch.optim.AdamW(outside, lr=options.learning_rate, betas=(0.9, 0.98))
    run = Run(options.run, options.updates, autoencoder, every=250, ema=0.995, muon=muon, adam=adam)
    for update in run:
        for group in (*muon.param_groups, *adam.param_groups):
            group["lr"] = options.learning_rate * learning_rate(update, options.updates)
        start = 4 * (update % 2)  # in clips a frame, and the next four, which share a latent frame
        window = slice(None) if options.task == "text" else slice(start, start + 5)
        _, _, pixels = scenes(options.task, options.batch, seed=update, window=window)
        posterior = autoencoder.encode(pixels).latent_dist
        again = autoencoder.decode(posterior.sample()).sample
        stands_out = (pixels - pixels.mean((-2, -1), keepdim=True)).abs().mean(1, keepdim=True)
        errors = F.smooth_l1_loss(again, pixels, beta=0.1, reduction="none")
        distance = (errors * (1 + 10 * stands_out)).mean()  # a shape's outline matters more than the background
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        (distance + options.kl * divergence).backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        muon.step()
        adam.step()
        run.done(options.batch, mse=(again - pixels).square().mean().item() / 4, kl=divergence.item())

    if not run.is_complete:
        return
    autoencoder.load_state_dict(run.average)
    autoencoder.eval()
    with torch.no_grad():
        parts = [
            scenes(options.task, min(32, options.measured), seed=-2 - i)[2] for i in range(-(-options.measured // 32))
        ]
        latents = torch.cat([autoencoder.encode(part).latent_dist.sample() for part in parts])
    changes = {"scaling_factor": 1 / latents.std().item()}
    if options.task == "text":
        changes["shift_factor"] = latents.mean().item()
    final = build(options.task, **changes)
    final.load_state_dict(autoencoder.state_dict())
    final.eval().save_pretrained(options.run / "autoencoder")
    print(changes, "PSNR", sheet(options.task, final, options.run / "reconstruction.png"))


if __name__ == "__main__":
    main()
