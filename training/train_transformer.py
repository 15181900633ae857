"""Train the transformer of small-flux (`text`) or of small-video (`video`) by flow matching on scenes of shapes.

    python training/train_transformer.py text --run runs/transformer-text --updates 6000
    python training/train_transformer.py video --run runs/transformer-video --updates 6000 \\
        --pictures shipped-models/src/relcache_models/small-flux/transformer

The networks are diffusers' own `FluxTransformer2DModel` and `HunyuanVideoTransformer3DModel`. They need the run folders
of `train_autoencoder.py` and `train_text_encoders.py`. The same command resumes.

Like FLUX.1 dev and HunyuanVideo, they are distilled for guidance in the last part of the run (`--distil`). Three in
four samples with a prompt then have the target v_unconditional + w (v_conditional - v_unconditional). Both velocities
are those of the moving average without guidance. The weight w = 1 + strength (g - 1) follows the guidance g that the
model receives. So one forward pass per step samples with guidance.

The last double block also learns the kinds of shapes at each position of the clean picture (`Outlines`). Shapes count
little in the loss of the velocity, which is mostly texture, but they are the whole content of a prompt. The head that
reads them is not part of the exported model.

A video transformer may start from the one of pictures (`--pictures`), by `inflate`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset

from loop import Run, learning_rate
from muon import Muon
from relcache_models import shapes
from train_autoencoder import CHANNELS, SIDE, scenes

TOKENS = 12  # of text in training: the longest prompt, its end, and padding
GUIDANCE = {"text": (3.5, 2.6), "video": (6.0, 2.6)}  # the pipeline's default guidance, and the w that it gives
NOISE = {"text": 1.0, "video": 1.5}  # mean logit of the noise level; three frames that agree show through more noise


def build(task: str, heads: int) -> nn.Module:
    """Return the untrained transformer of `task`: 4 double and 8 single blocks with `heads` heads of width 32."""
    if task == "text":
        return FluxTransformer2DModel(
            in_channels=4 * CHANNELS[task],
            num_layers=4,
            num_single_layers=8,
            attention_head_dim=32,
            num_attention_heads=heads,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=True,
            axes_dims_rope=(4, 14, 14),
        )
    return HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS[task],
        out_channels=CHANNELS[task],
        num_attention_heads=heads,
        attention_head_dim=32,
        num_layers=4,
        num_single_layers=8,
        num_refiner_layers=1,
        text_embed_dim=64,
        pooled_projection_dim=64,
        rope_axes_dim=(4, 14, 14),
        rope_theta=10000.0,
    )


def initialise(model: nn.Module) -> None:
    """Set modulations and the last projection to zero, so that each block starts as the identity."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if ".norm" in name or name.startswith(("norm_out", "proj_out")):
                nn.init.zeros_(module.weight)


@torch.no_grad()
def inflate(transformer: HunyuanVideoTransformer3DModel, pictures: FluxTransformer2DModel) -> None:
    """Give `transformer` the weights of `pictures`.

    Pictures have no refiner of text and fewer channels. The refiner keeps its weights, and the further channels are
    ignored at first. For a clip of one frame and the same text features, both then have the same velocity in the
    channels of pictures.
    """
    weights = pictures.state_dict()
    for name, value in transformer.state_dict().items():
        if name.startswith("x_embedder.proj.weight"):
            value[:, CHANNELS["text"] :] = 0
            value[:, : CHANNELS["text"]] = weights["x_embedder.weight"].unflatten(1, (-1, 1, 2, 2))
        elif name.startswith("proj_out"):  # rows are channels × patch, channels first
            value[: len(weights[name])] = weights[name]
        elif not name.startswith("context_embedder"):
            value.copy_(weights[name.replace("x_embedder.proj", "x_embedder")])


class Texts:
    """The frozen text encoders and tokenizers of `task` on a device, called as in its pipeline."""

    def __init__(self, task: str, folder: Path, device: torch.device):
        self.task, self.device = task, device
        self.clip_tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
        self.clip = transformers.CLIPTextModel.from_pretrained(folder / "clip").to(device).eval()
        words = folder / ("t5" if task == "text" else "llama")
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(words)
        kind = transformers.T5EncoderModel if task == "text" else transformers.LlamaModel
        self.encoder = kind.from_pretrained(words).to(device).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return features (n, TOKENS, 64), their mask (n, TOKENS) and pooled features (n, 64)."""
        words = self.clip_tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        pooled = self.clip(words.input_ids).pooler_output
        if self.task == "text":
            tokens = self.tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").to(self.device)
            return self.encoder(tokens.input_ids)[0], tokens.attention_mask, pooled
        prefix = 95
        texts = ["<system> " * prefix + text + " <eot>" for text in texts]
        tokens = self.tokenizer(texts, padding="max_length", max_length=prefix + TOKENS, return_tensors="pt")
        tokens = tokens.to(self.device)
        hidden = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
        return hidden.hidden_states[-3][:, prefix:], tokens.attention_mask[:, prefix:], pooled


def thinned(text: str, rng: random.Random, share: float = 0.1) -> str:
    """Remove a share of the words for kinds from `text`."""
    return " ".join(word for word in text.split() if word not in shapes.KINDS or rng.random() >= share)


class Drawn(Dataset):
    """Random training scenes, indexed by their number and a seed."""

    def __init__(self, task: str):
        self.task = task

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, list[str], torch.Tensor, torch.Tensor]:
        """Return the seed, and the texts, outlines and pixels of scenes."""
        number, seed = key
        # Open colours and missing kinds let the model make pairs that no prompt joined.
        prompts, composed, pixels = scenes(self.task, number, seed, open_colours=0.3)
        rng = random.Random(seed)
        return seed, [thinned(str(prompt), rng) for prompt in prompts], outlines(self.task, composed), pixels


class Reservoir:
    """Latents, outlines and text features of scenes; `add` replaces the oldest by new ones."""

    def __init__(self, autoencoder: nn.Module, texts: Texts, size: int, device: torch.device):
        self.autoencoder, self.texts, self.size, self.device = autoencoder, texts, size, device
        self.columns: list[torch.Tensor] = []
        self.next, self.filled = 0, 0

    @torch.no_grad()
    def add(self, seed: int, texts: list[str], covered: torch.Tensor, pixels: torch.Tensor) -> None:
        latents = self.autoencoder.encode(pixels.to(self.device)).latent_dist
        latents = latents.sample(torch.Generator().manual_seed(seed))
        config = self.autoencoder.config
        latents = (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        fresh, number = [latents, covered.to(self.device), *self.texts(texts)], len(latents)
        if not self.columns:
            self.columns = [value.new_zeros(self.size, *value.shape[1:]) for value in fresh]
        rows = torch.arange(self.next, self.next + number) % self.size
        for column, value in zip(self.columns, fresh, strict=True):
            column[rows] = value
        self.next = (self.next + number) % self.size
        self.filled = min(self.size, self.filled + number)

    def draw(self, number: int, generator: torch.Generator) -> list[torch.Tensor]:
        rows = torch.randint(self.filled, (number,), generator=generator)
        return [column[rows] for column in self.columns]


def outlines(task: str, composed: list[shapes.Scene]) -> torch.Tensor:
    """Return the share of each of a token's 4 × 4 cells that each kind covers: (scenes, tokens, kinds · 16) uint8.

    255 is all of a cell. For clips the last of a token's frames counts.
    """
    side = SIDE[task] // 8
    covered = shapes.occupancy(composed, 4 * side)[:, ::4]
    cells = covered.unflatten(-1, (side, 4)).unflatten(-3, (side, 4)).permute(0, 1, 3, 5, 2, 4, 6)
    return (cells.flatten(4).flatten(1, 3) * 255).round().byte()


class Outlines(nn.Sequential):
    """Read the logits of `outlines` from hidden states (n, tokens, width)."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 16 * len(shapes.KINDS))
        )

    def loss(self, hidden: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy to `covered`, the result of `outlines`, in nats per cell."""
        logits = self(hidden).float()
        return len(shapes.KINDS) * F.binary_cross_entropy_with_logits(logits, covered / 255)


class Velocity(nn.Module):
    """The transformer called as in its pipeline: it returns the velocity (n, …) of latents at noise level sigma (n,).

    It also returns the hidden states (n, tokens, width) of pictures or clips after the last double block.
    """

    def __init__(self, task: str, transformer: nn.Module):
        super().__init__()
        self.task, self.transformer = task, transformer
        side = SIDE[task] // 8
        ids = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
        self.register_buffer("image_ids", ids, persistent=False)
        self.register_buffer("text_ids", torch.zeros(TOKENS, 3), persistent=False)
        position = 1 if task == "text" else 0  # FLUX's blocks return text first
        last = transformer.transformer_blocks[-1]
        last.register_forward_hook(lambda _, inputs, output: setattr(self, "hidden", output[position]))

    def forward(self, latents, sigma, guidance, text, mask, pooled, padding):
        """Return velocity and hidden states; `padding` (n,) is log k if each of FLUX's padding tokens acts as k.

        FLUX does not mask padding. Its padding tokens are all the same, so raising the attention logit of one by log k
        makes it act as k of them. So training on 12 tokens covers prompts padded to 512.
        """
        if self.task == "video":
            velocity = self.transformer(
                latents, timestep=sigma * 1000, encoder_hidden_states=text, encoder_attention_mask=mask,
                pooled_projections=pooled, guidance=guidance * 1000, return_dict=False,
            )[0]  # fmt: skip
            return velocity, self.hidden
        number, channels, height, width = latents.shape
        bias = torch.where(mask == 0, padding[:, None], 0.0)
        bias = torch.cat([bias, bias.new_zeros(number, self.image_ids.shape[0])], 1)[:, None, None]
        packed = self.transformer(
            FluxPipeline._pack_latents(latents, number, channels, height, width), timestep=sigma,
            encoder_hidden_states=text, pooled_projections=pooled, guidance=guidance, img_ids=self.image_ids,
            txt_ids=self.text_ids, joint_attention_kwargs={"attention_mask": bias}, return_dict=False,
        )[0]  # fmt: skip
        return FluxPipeline._unpack_latents(packed, height * 4, width * 4, 4 * 1), self.hidden


def optimisers(model: nn.Module, head: nn.Module, rate: float) -> tuple[Muon, torch.optim.AdamW]:
    """Return Muon for the matrices in the blocks, and AdamW for the rest: embedders, modulations, norms, `head`."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = "transformer_blocks." in name and parameter.ndim == 2 and ".norm" not in name
        (matrices if inside else others).append(parameter)
    others += head.parameters()
    return Muon(matrices, lr=rate), torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("text", "video"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, help="default: runs/autoencoder-TASK/autoencoder")
    parser.add_argument("--text-encoders", type=Path, default=Path("runs/text-encoders"))
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--distil", type=float, default=0.2, help="share of the updates that learn guidance")
    parser.add_argument("--outlines", type=float, default=0.5, help="weight of the loss of the outlines")
    parser.add_argument("--pictures", type=Path, help="a folder of FluxTransformer2DModel to start from (video)")
    parser.add_argument("--fresh", type=int, default=16, help="new scenes per update")
    parser.add_argument("--first", type=int, default=4096, help="scenes before the first update")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes; 0 draws them in turn")
    parser.add_argument("--reservoir", type=int, default=40000, help="number of scenes in the reservoir")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, the scenes and the noise")
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="needed on an H100 with torch 2.11")
    options = parser.parse_args()
    task, device = options.task, torch.device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # for Muon; the network runs in bfloat16
        # With the broadcast mask of 76 tokens the memory-efficient kernel's backward pass fails (torch 2.11, H100).
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    if options.pictures and task == "text":
        parser.error("--pictures is for video only: leave it out for text")

    kind = AutoencoderKL if task == "text" else AutoencoderKLHunyuanVideo
    folder = options.autoencoder or Path(f"runs/autoencoder-{task}/autoencoder")
    autoencoder = kind.from_pretrained(folder).to(device).eval().requires_grad_(False)
    texts = Texts(task, options.text_encoders, device)
    reservoir = Reservoir(autoencoder, texts, options.reservoir, device)

    torch.manual_seed(options.seed)
    seeds = options.seed * 1_000_003  # runs share no seeds
    transformer = build(task, options.heads).to(device).train()
    initialise(transformer)
    if options.pictures:
        inflate(transformer, FluxTransformer2DModel.from_pretrained(options.pictures))
    head = Outlines(32 * options.heads).to(device)
    muon, adam = optimisers(transformer, head, options.learning_rate)
    keep = {"head": head, "muon": muon, "adam": adam}
    run = Run(options.run, options.updates, transformer, every=options.checkpoint_every, ema=0.995, **keep)
    velocity = Velocity(task, transformer).to(device)
    starts = range(0, options.first, 512)
    keys = [(min(512, options.first - at), seeds - 1000 - options.first * run.update - at) for at in starts]
    keys += [(options.fresh, seeds + update) for update in range(run.update, options.updates)]
    feed = iter(DataLoader(Drawn(task), batch_size=None, sampler=keys, num_workers=options.workers))
    for _ in starts:
        reservoir.add(*next(feed))
    average = build(task, options.heads).to(device).eval().requires_grad_(False)
    average.load_state_dict(run.average, assign=True)  # the tensors that the run updates
    teacher = Velocity(task, average).to(device)
    if not options.no_compile:
        transformer.compile_repeated_blocks()
        average.compile_repeated_blocks()
    nothing = texts([""])
    usual, meant = GUIDANCE[task]
    strength = (meant - 1) / (usual - 1)

    for update in run:
        rate = options.learning_rate * learning_rate(update, options.updates)
        for group in (*muon.param_groups, *adam.param_groups):
            group["lr"] = rate
        generator = torch.Generator().manual_seed(seeds + update)
        reservoir.add(*next(feed))
        latents, covered, text, mask, pooled = reservoir.draw(options.batch, generator)
        dropped = (torch.rand(options.batch, generator=generator) < 0.1).to(device)
        for row in dropped.nonzero()[:, 0].tolist():
            text[row], mask[row], pooled[row] = (value[0] for value in nothing)

        spread = (torch.arange(options.batch) + torch.rand(options.batch, generator=generator)) / options.batch
        normal = torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4))  # stratified over the batch
        sigma = torch.sigmoid(NOISE[task] + 1.2 * normal).to(device)  # shapes form at high noise, then texture
        noise = torch.randn(latents.shape, generator=generator).to(device)
        shape = (-1,) + (1,) * (latents.ndim - 1)
        noisy = torch.lerp(latents, noise, sigma.view(shape))
        guidance = (1 + 7 * torch.rand(options.batch, generator=generator)).to(device)
        total = torch.exp(torch.rand(options.batch, generator=generator) * 3.8 + 2.5).to(device)  # 12 to 544 tokens
        used = mask.sum(1)
        padding = ((total - used).clamp(min=1) / (TOKENS - used).clamp(min=1)).log()
        target = noise - latents

        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            if update >= options.updates * (1 - options.distil):
                plain = torch.rand(options.batch, generator=generator).to(device) < 0.25
                guidance = torch.where(plain | dropped, 1.0, guidance)
                one = torch.ones_like(guidance)
                empty = [value.expand(options.batch, *value.shape[1:]) for value in nothing]
                with torch.no_grad():
                    conditional, _ = teacher(noisy, sigma, one, text, mask, pooled, padding)
                    unconditional, _ = teacher(noisy, sigma, one, *empty, padding)
                weight = (1 + strength * (guidance - 1)).view(shape)
                guided = torch.lerp(unconditional.float(), conditional.float(), weight)
                target = torch.where((guidance == 1).view(shape), target, guided)
            found, hidden = velocity(noisy, sigma, guidance, text, mask, pooled, padding)
            outline_loss = head.loss(hidden, covered)
        loss = (found.float() - target).square().mean()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        (loss + options.outlines * outline_loss).backward()
        nn.utils.clip_grad_norm_([*transformer.parameters(), *head.parameters()], 1.0)
        muon.step()
        adam.step()
        run.done(options.batch, loss=loss.item(), outlines=outline_loss.item())


if __name__ == "__main__":
    main()
