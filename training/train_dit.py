"""Train the class-conditional DiT on Fashion-MNIST that relcache ships.

    python training/train_dit.py --updates 8000 --run runs/dit \\
        --export shipped-models/src/relcache_models/dit-fashion-mnist

The network is diffusers' own `DiTTransformer2DModel` and is trained like DiT-XL/2. It predicts the noise of a 1000-step
linear schedule. One class label in ten is dropped for guidance. The exported weights are an exponential moving average.
Unlike there, the loss is weighted by min-SNR, which learns faster; the log has the unweighted loss. The same command
resumes from the checkpoint in the run folder. Ctrl-C and SIGTERM save first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings
from torch import nn

import fashion_mnist

NULL_CLASS = 1000  # DiTPipeline's unconditional label
TIMESTEPS = 1000


class GivenEmbedding(nn.Module):
    """Stands in for a block's own embedding and returns `timestep`, which is the embedding here."""

    def forward(self, timestep, class_labels, hidden_dtype=None):
        return timestep


class TrainingDiT(nn.Module):
    """A DiT whose blocks share one embedding of timestep and label, computed once per forward pass.

    diffusers' class computes an embedding in each block, which is half of the cost of a narrow model. `exported` copies
    the shared one into each block of the plain diffusers class.
    """

    def __init__(self, config: dict):
        super().__init__()
        self.transformer = DiTTransformer2DModel(**config)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        self.embedding = CombinedTimestepLabelEmbeddings(NULL_CLASS, width, class_dropout_prob=0.1)
        for block in self.transformer.transformer_blocks:
            block.norm1.emb = GivenEmbedding()
        initialise(self)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        embedding = self.embedding(timestep, labels, hidden_dtype=noisy.dtype)
        return self.transformer(noisy, timestep=embedding, class_labels=labels, return_dict=False)[0]


def initialise(model: TrainingDiT) -> None:
    """Initialise as adaLN-Zero (DiT, arXiv 2212.09748): modulations and the last projection start at zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    table = model.embedding.class_embedder.embedding_table.weight
    nn.init.normal_(table, std=0.02)
    with torch.no_grad():
        table[10:NULL_CLASS].zero_()  # labels that the data set lacks
    for block in model.transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(model.transformer.proj_out_1.weight)
    nn.init.zeros_(model.transformer.proj_out_2.weight)


def load_exported(model: TrainingDiT, folder: Path) -> None:
    """Load exported weights, as the inverse of `exported`; the optimiser starts anew."""
    state = DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).state_dict()
    prefix = "transformer_blocks.0.norm1.emb."
    model.embedding.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    model.transformer.load_state_dict({k: v for k, v in state.items() if ".norm1.emb." not in k})


def exported(model: TrainingDiT, weights: dict[str, torch.Tensor], config: dict) -> DiTTransformer2DModel:
    """Return the plain diffusers model with `weights`, the shared embedding copied into each block."""
    state = {k[len("transformer.") :]: v for k, v in weights.items() if k.startswith("transformer.")}
    for name, value in weights.items():
        if name.startswith("embedding."):
            for block in range(config["num_layers"]):
                state[f"transformer_blocks.{block}.norm1.emb.{name[len('embedding.') :]}"] = value
    plain = DiTTransformer2DModel(**config)
    plain.load_state_dict(state)
    return plain


def learning_rate(update: int, updates: int, peak: float, warmup: int = 200, cooldown: float = 0.25) -> float:
    """Return the rate: a warm-up, a constant stretch, then a linear fall over the last `cooldown` of the run."""
    if update < warmup:
        return peak * (update + 1) / warmup
    start = updates * (1 - cooldown)
    return peak * min(1.0, max(0.02, (updates - update) / (updates - start)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/dit"), help="folder of the checkpoint and the log")
    parser.add_argument("--export", type=Path, help="write the pipeline folder here with each checkpoint")
    parser.add_argument("--data", type=Path, help="folder of the four IDX files")
    parser.add_argument("--start-from", type=Path, help="an exported pipeline folder to start from")
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-width", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--min-snr", type=float, default=5.0, help="largest signal-to-noise ratio with full weight (arXiv 2303.09556)"
    )
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    config = {
        "num_attention_heads": options.heads,
        "attention_head_dim": options.head_width,
        "in_channels": 1,
        "out_channels": 1,
        "num_layers": options.layers,
        "sample_size": 28,
        "patch_size": 4,
        "num_embeds_ada_norm": NULL_CLASS,
    }
    torch.manual_seed(options.seed)
    model = TrainingDiT(config).to(device).train()
    if options.start_from:
        load_exported(model, options.start_from)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint, log = options.run / "checkpoint.pt", options.run / "loss.jsonl"
    update, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, update, seconds = saved["average"], saved["update"], saved["seconds"]
        print(f"resumed at update {update}", flush=True)

    images, labels = fashion_mnist.load("train", options.data)
    images = (images.to(device).float() / 127.5 - 1).contiguous()
    labels = labels.to(device)
    betas = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0).float().to(device)

    signal_to_noise = alphas / (1 - alphas)
    weights = (signal_to_noise.clamp(max=options.min_snr) / signal_to_noise).to(device)

    step = model if options.no_compile else torch.compile(model)
    stop = {"asked": False}
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.update(asked=True))

    def save() -> None:
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "update": update,
                "seconds": seconds,
            },
            temporary,
        )
        os.replace(temporary, checkpoint)
        if options.export:
            import pipeline_folder

            pipeline_folder.write(options.export, exported(model, average, config))

    losses, started = [], time.perf_counter()
    while update < options.updates and not stop["asked"]:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + update)
        rows = torch.randint(len(images), (options.batch,), generator=generator).to(device)
        spread = (torch.arange(options.batch) + torch.rand(options.batch, generator=generator)) / options.batch
        timestep = (spread * TIMESTEPS).long().clamp_(max=TIMESTEPS - 1).to(device)  # stratified over the batch
        noise = torch.randn(options.batch, 1, 28, 28, generator=generator).to(device)
        signal_rate = alphas[timestep].sqrt()[:, None, None, None]
        noise_rate = (1 - alphas[timestep]).sqrt()[:, None, None, None]
        noisy = signal_rate * images[rows] + noise_rate * noise

        rate = learning_rate(update, options.updates, options.learning_rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            errors = (step(noisy, timestep, labels[rows]).float() - noise).square().mean((1, 2, 3))
            loss = (errors * weights[timestep]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(options.ema, (1 + update) / (10 + update))
        current = model.state_dict()
        torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - decay)

        update += 1
        losses.append(errors.mean().item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"the loss is {losses[-1]} at update {update}: lower --learning-rate")
        if update % 50 == 0:
            elapsed = time.perf_counter() - started
            seconds, started = seconds + elapsed, time.perf_counter()
            row = {
                "update": update,
                "loss": sum(losses) / len(losses),
                "learning_rate": rate,
                "samples_per_second": len(losses) * options.batch / elapsed,
                "seconds": seconds,
            }
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
            losses = []
        if update % options.checkpoint_every == 0:
            save()
    save()
    print(f"stopped at update {update} of {options.updates}", flush=True)


if __name__ == "__main__":
    main()
