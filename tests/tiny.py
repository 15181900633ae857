"""Tiny random transformers and pipelines for the tests, and sampling loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

TRAIN_STEPS = 1000
BETAS = (1e-4, 5e-3)  # gentler than usual: a random model's noise would drown the picture
NULL_CLASS = 1000  # DiTPipeline's own number for "no class"


class DiTWithContext(DiTTransformer2DModel, CacheMixin):
    """The DiT class with diffusers' cache_context, which newer classes have."""


def tiny_dit(
    seed: int = 0,
    blocks: int = 2,
    channels: int = 4,
    sample_size: int = 8,
    kind: type[DiTTransformer2DModel] = DiTTransformer2DModel,
) -> DiTTransformer2DModel:
    """Return a DiT of random weights whose features move smoothly with the timestep."""
    model = kind(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=channels,
        num_layers=blocks,
        sample_size=sample_size,
        patch_size=2,
        num_embeds_ada_norm=NULL_CLASS,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        for block in model.transformer_blocks:
            # The fast sinusoids of the timestep embedding would make features jump, unlike those of a trained model.
            first = block.norm1.emb.timestep_embedder.linear_1.weight
            frequency = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 127)
            first[:, (frequency > 0.02).repeat(2)] = 0
    return model.eval()


def tiny_pipeline(seed: int = 0, blocks: int = 2) -> DiTPipeline:
    """Return a DiTPipeline around `tiny_dit`, built without any download."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, layers_per_block=1)
    scheduler = DDIMScheduler(TRAIN_STEPS, *BETAS, clip_sample=False)
    pipeline = DiTPipeline(tiny_dit(seed, blocks), vae.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class CopyingPipeline(DiTPipeline):  # type: ignore[misc]
    """A pipeline that replaces its scheduler by a copy while it runs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own, self.scheduler = self.scheduler, copy.deepcopy(self.scheduler)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.scheduler = own


def run_pipeline(
    pipeline: DiTPipeline, labels: list[int], steps: int = 16, guidance: float = 1.5, seeds: list[int] | None = None
) -> Tensor:
    """Return the latents that the pipeline passes to its decoder, before anything is clamped."""
    seeds = seeds or list(range(len(labels)))
    latents: list[Tensor] = []

    def keep(value: Tensor) -> SimpleNamespace:
        latents.append(value * pipeline.vae.config.scaling_factor)
        return SimpleNamespace(sample=value)

    with mock.patch.object(pipeline.vae, "decode", keep):
        pipeline(
            labels,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            output_type="pt",
        )
    return latents[0]


def noise_for(seeds: list[int], channels: int = 4, size: int = 8) -> Tensor:
    """Draw start noise (seeds, channels, size, size) like the pipeline, with one seed per sample."""
    shape = (1, channels, size, size)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def timesteps_for(steps: int) -> Tensor:
    """Return DDIM's falling timesteps (steps,) int64, with diffusers' default spacing."""
    return (torch.arange(steps) * (TRAIN_STEPS // steps)).flip(0).contiguous()


def alphas_for(steps: int) -> list[tuple[float, float]]:
    """Return the cumulated alphas of each step and of the next one."""
    alphas = torch.cumprod(1 - torch.linspace(*BETAS, TRAIN_STEPS, dtype=torch.float64), 0).tolist()
    times = timesteps_for(steps).tolist()
    return [(alphas[t], alphas[t - TRAIN_STEPS // steps] if t >= TRAIN_STEPS // steps else 1.0) for t in times]


Denoise = Callable[[int, Tensor, Tensor], Tensor]


@torch.no_grad()
def ddim(denoise: Denoise, sample: Tensor, steps: int, timesteps: Tensor | None = None) -> Tensor:
    """Run DDIM by hand: `denoise(step, sample, timestep)` predicts the noise; timesteps are views of one tensor."""
    timesteps = timesteps_for(steps) if timesteps is None else timesteps
    for step, (alpha, alpha_next) in enumerate(alphas_for(steps)):
        noise = denoise(step, sample, timesteps[step])
        clean = (sample - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        sample = alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise
    return sample


class BrokenOff(Exception):
    """Raised by a test's own loop in the middle of sampling."""


def run_loop(
    model: DiTTransformer2DModel,
    labels: Tensor | None = None,
    steps: int = 12,
    seeds: list[int] | None = None,
    size: int = 8,
    break_at: int | None = None,
    error: type[BaseException] = BrokenOff,
) -> Tensor:
    """Sample without guidance, and raise `error` between calls before step `break_at`."""
    labels = torch.tensor([3, 5]) if labels is None else labels
    seeds = seeds or list(range(len(labels)))

    def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
        if step == break_at:
            raise error("broken off by the caller")
        return model(sample, timestep=timestep.expand(len(sample)), class_labels=labels).sample

    return ddim(denoise, noise_for(seeds, model.config.in_channels, size), steps)


def run_guided(
    model: DiTTransformer2DModel,
    steps: int = 12,
    context: bool = False,
    uncond_steps: Collection[int] | None = None,
    scale: float = 1.5,
    break_after_cond_at: int | None = None,
) -> Tensor:
    """Sample with one call per guidance branch; `uncond_steps` are the steps of the second branch, by default all."""
    labels = {"cond": torch.tensor([3, 5]), "uncond": torch.tensor([NULL_CLASS, NULL_CLASS])}

    def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
        def call(branch: str) -> Tensor:
            with model.cache_context(branch) if context else nullcontext():
                return model(sample, timestep=timestep.expand(len(sample)), class_labels=labels[branch]).sample

        cond = call("cond")
        if step == break_after_cond_at:
            raise BrokenOff("broken off between the branches")
        if uncond_steps is not None and step not in uncond_steps:
            return cond
        uncond = call("uncond")
        return uncond + scale * (cond - uncond)

    return ddim(denoise, noise_for([0, 1], model.config.in_channels), steps)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference over the norm of the reference."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def trajectory(steps: int, seed: int = 0) -> Tensor:
    """Return samples of an invented denoising run, (steps, 2, 4, 8, 8), as common inputs of the branches."""
    start, end = noise_for([seed, seed + 1]), noise_for([seed + 2, seed + 3])
    along = torch.linspace(0, 1, steps).reshape(-1, 1, 1, 1, 1)
    return start * torch.cos(along) + end * torch.sin(1.5 * along**2)


@torch.no_grad()
def call_along(
    model: DiTTransformer2DModel,
    samples: Tensor,
    branches: dict[str, Collection[int]],
    context: bool = False,
    after: Callable[[int, str], None] = lambda step, branch: None,
) -> dict[str, list[Tensor]]:
    """Call `model` on `samples`, each branch in its own steps, and `after` after each call."""
    labels = {"cond": torch.tensor([3, 5]), "uncond": torch.tensor([NULL_CLASS, NULL_CLASS])}
    timesteps = timesteps_for(len(samples))
    outputs: dict[str, list[Tensor]] = {branch: [] for branch in branches}
    for step, sample in enumerate(samples):
        for branch, steps in branches.items():
            if step not in steps:
                continue
            with model.cache_context(branch) if context else nullcontext():
                output = model(sample, timestep=timesteps[step].expand(2), class_labels=labels[branch]).sample
            outputs[branch].append(output)
            after(step, branch)
    return outputs
