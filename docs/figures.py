"""Draw the pictures of the README and of the page on corrected caching, with the shipped small-flux.

    python docs/figures.py

Seconds are of the whole call on this machine, the median of three; they stand below each picture.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import relcache
import relcache_models
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr as psnr_of

PROMPTS = SMALL["text"].conditions(range(6))  # the first of the benchmark
STEPS = 50
SIZE = {"height": 64, "width": 64, "max_sequence_length": 16, "guidance_scale": 3.5}
BLUE, ORANGE = "#2166ac", "#d6604d"


def load() -> Any:
    """Return the pipeline of small-flux, without its progress bar."""
    pipe = DiffusionPipeline.from_pretrained(relcache_models.folder("small-flux"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: Any, prompts: list[str], **options: Any) -> Tensor:
    """Return pictures (n, 3, height, width) in [0, 1]."""
    seeds = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    return pipe(prompts, num_inference_steps=STEPS, generator=seeds, output_type="pt", **SIZE, **options).images


# The first picture


def draw_first(pipe: Any, out: Path) -> None:
    """Draw full compute beside 14 and 8 full steps, with the seconds of each below."""
    (full, whole), *others = [timed(pipe, full_steps) for full_steps in (None, 14, 8)]
    texts = [f"full compute: {STEPS} steps\n{whole:.1f} s"]
    for (pictures, seconds), full_steps in zip(others, (14, 8), strict=True):
        psnr = statistics.mean(psnr_of(pictures, full).tolist())
        faster = f"{seconds:.1f} s, {whole / seconds:.1f} times faster; {psnr:.0f} dB"
        texts.append(f"{full_steps} full steps, the others forecast\n{faster}")
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7))
    for axis, pictures, text in zip(axes, [full, *(each for each, _ in others)], texts, strict=True):
        axis.imshow(tiled(pictures, 3))
        axis.axis("off")
        axis.set_title(text, y=-0.21, fontsize=13)
    figure.suptitle(f"small-flux, {len(PROMPTS)} prompts at once, on a CPU", fontsize=12, y=0.99)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.17, wspace=0.04)
    save(figure, out / "first.png")


def timed(pipe: Any, full_steps: int | None) -> tuple[Tensor, float]:
    """Return pictures of all prompts, and the median seconds of three runs; one more warms up."""
    handle = relcache.enable(pipe, full_steps=full_steps) if full_steps is not None else None
    seconds, pictures = [], torch.empty(0)
    for _ in range(4):
        began = time.perf_counter()
        pictures = sample(pipe, [str(prompt) for prompt in PROMPTS])
        seconds.append(time.perf_counter() - began)
    if handle is not None:
        handle.disable()
    return pictures, statistics.median(seconds[1:])


def tiled(pictures: Tensor, columns: int) -> np.ndarray:
    """Return pictures (n, 3, height, width) as one picture, with white lines in between."""
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=1.0)
    rows = [torch.cat(list(row), 2) for row in padded.split(columns)]
    return torch.cat(rows, 1).permute(1, 2, 0).clamp(0, 1).numpy()


# Corrected caching


@contextmanager
def recorded(pipe: Any) -> Iterator[list[Tensor]]:
    """Record the output of each call of the transformer, (samples, tokens, channels)."""
    outputs: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output.sample).detach().float().clone())

    hook = pipe.transformer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


def course(pipe: Any, **enabled: Any) -> tuple[Tensor, Tensor, list[int]]:
    """Return outputs and samples, (steps, samples, n), of all prompts, and the full steps."""
    samples: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        samples.append(tensors["latents"].float().clone())
        return {}

    handle = relcache.enable(pipe, **enabled) if enabled else None
    with recorded(pipe) as outputs:
        sample(pipe, [str(prompt) for prompt in PROMPTS], callback_on_step_end=keep)
    full = list(range(STEPS))
    if handle is not None:
        full = handle.full_steps
        handle.disable()
    return torch.stack(outputs).flatten(2), torch.stack(samples).flatten(2), full


def draw_correction(pipe: Any, out: Path) -> None:
    """Draw the outputs in the gaps, and the error of the sample over the steps."""
    exact_outputs, exact, _ = course(pipe)
    outputs, _, full = course(pipe, full_steps=8, corrector="none")
    mean = exact_outputs[:, 0].mean(0)
    direction = torch.linalg.svd(exact_outputs[:, 0] - mean, full_matrices=False).Vh[1]
    draw_outputs(*((each[:, 0] - mean) @ direction for each in (exact_outputs, outputs)), full, out)
    _, plain, full = course(pipe, full_steps=14, corrector="none")
    _, corrected, _ = course(pipe, full_steps=14)
    draw_samples({"not corrected": plain, "corrected": corrected}, exact, full, out)


def draw_outputs(true: Tensor, forecast: Tensor, full: list[int], out: Path) -> None:
    """Draw outputs (steps,) of full compute, as they were forecast, and interpolated between full steps."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    axis.plot(range(STEPS), true, color="0.6", lw=4, label="full compute")
    for first, last in pairwise(full):
        names = ("forecast", "interpolated once the gap's end is known") if first == 0 else (None, None)
        inside = np.arange(first, last)
        axis.plot(inside, forecast[inside], "--", color=ORANGE, label=names[0])
        axis.plot([first, last], forecast[[first, last]], color=BLUE, label=names[1])
    axis.plot(full, forecast[full], "o", color="black", label="full step")
    axis.set(
        xlabel="step", ylabel="output, second principal component", title="small-flux, 1 sample, 8 full steps of 50"
    )
    axis.legend(frameon=False)
    save(figure, out / "correction-outputs.png")


def draw_samples(courses: dict[str, Tensor], exact: Tensor, full: list[int], out: Path) -> None:
    """Draw the distance of samples (steps, samples, n) to those of full compute, its mean over the samples."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for (label, samples), colour in zip(courses.items(), (ORANGE, BLUE), strict=True):
        axis.plot(100 * ((samples - exact).norm(dim=2) / exact.norm(dim=2)).mean(1), color=colour, label=label)
    for step in full:
        axis.axvline(step, color="0.85", zorder=0, label="full step" if step == full[0] else None)
    axis.set(
        xlabel="step",
        ylabel="distance of samples\nto full compute, %",
        title=f"small-flux, mean of {exact.shape[1]} samples, 14 full steps of 50",
    )
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    save(figure, out / "correction-samples.png")


def save(figure: Any, path: Path) -> None:
    """Write a figure, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(path)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    out = parser.parse_args().out
    pipe = load()
    draw_correction(pipe, out)
    draw_first(pipe, out)


if __name__ == "__main__":
    main()
