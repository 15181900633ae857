"""Are the default's options right on a model that they were not chosen on? Chosen on all but one, judged on that one.

    python benchmarks/leave_one_out.py --out benchmarks/results/leave-one-out.json

The options are the growth of the gaps, the forecaster's order and damping, and theta. Models of one kind of prediction
are compared with each other: small-flux and small-video predict velocity, the DiT noise. So that there are three of
that kind, the two flow models are asked for noise as well, under DDIM's steps with the betas of DDPM: from their
velocity v at `x = (1 - σ) x0 + σ ε` the noise is `x + (1 - σ) v`. Mean PSNR in dB to full compute at 14 and 8 full
steps of 50, 16 samples. Each run is written at once; run again, it goes on.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import relcache
from relcache import Replay, auto
from relcache.bench import files
from relcache.bench.comparison.arguments import call_options
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import load_pipeline

FIRST_SEED, SAMPLES, STEPS, BUDGETS = 40_000, 16, 50, (14, 8)
FORECASTS = ((1, 0.5), (2, 0.5), (2, 1.0))  # order and damping
GRIDS = {
    "velocity": list(itertools.product((1.4, 1.55, 1.7, 1.85), FORECASTS, (0.0, 0.3, 1.0))),
    "noise": list(itertools.product((0.8, 0.9, 1.0, 1.2), FORECASTS, (0.3, 1.0))),
}
DEFAULTS = {"velocity": (1.7, (2, 0.5), 0.3), "noise": (0.9, (2, 0.5), 1.0)}
SUBJECTS = {
    "velocity": ["small-flux", "small-video"],
    "noise": ["dit-fashion-mnist", "small-flux, noise", "small-video, noise"],
}
console = Console(stderr=True)
Options = tuple[float, tuple[int, float], float]


class Config(dict):
    """A scheduler's config: keys as attributes, as diffusers has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class NoiseSteps:
    """DDIM's updates of a model that predicts noise, on samples `(1 - σ) x0 + σ ε`."""

    order, init_noise_sigma = 1, 1.0

    def __init__(self, config: Any):
        self.config = Config({**config, "prediction_type": "epsilon", "num_train_timesteps": 1000})
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.step_index: int | None = None

    def set_begin_index(self, index: int = 0) -> None:
        """Every request begins at the first step."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        steps = num_inference_steps or len(sigmas)
        product = self.alphas_cumprod[torch.arange(steps).mul(1000 // steps).flip(0)]
        noise, clean = (1 - product).sqrt(), product.sqrt()
        sigmas = (noise / (noise + clean)).float()
        self.sigmas, self.timesteps = torch.cat([sigmas, torch.zeros(1)]), 1000 * sigmas
        self.step_index, self.num_inference_steps = 0, steps

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        assert self.step_index is not None
        sigma, later = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        self.step_index += 1
        noise = model_output.float()
        clean = (sample.float() - sigma * noise) / (1 - sigma)
        made = ((1 - later) * clean + later * noise).to(sample.dtype)
        return SimpleNamespace(prev_sample=made) if return_dict else (made,)


def ask_for_noise(pipe: Any) -> None:
    """Let a pipeline of a flow model be one whose model predicts noise."""
    pipe.scheduler = NoiseSteps(pipe.scheduler.config)
    in_thousands = "Hunyuan" in type(pipe.transformer).__name__

    def noise(model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        velocity, sample, sigma = output[0], kwargs["hidden_states"], kwargs["timestep"]
        sigma = (sigma / 1000 if in_thousands else sigma).view(-1, *(1,) * (sample.ndim - 1)).to(velocity.dtype)
        return (sample + (1 - sigma) * velocity, *output[1:])

    pipe.transformer.register_forward_hook(noise, with_kwargs=True)


class Subject:
    """One model, and full compute of its samples."""

    def __init__(self, name: str):
        model, _, kind = name.partition(", ")
        self.pipe = load_pipeline(model)
        if kind:
            ask_for_noise(self.pipe)
        seeds = [FIRST_SEED + index for index in range(SAMPLES)]
        task = next(task for task in SMALL.values() if task.model == model)
        sampler = Sampler(self.pipe, STEPS, SAMPLES, call_options(model, None, None, None, []))
        self.sample = lambda: sampler.call(seeds, task.conditions(seeds))
        self.reference = self.sample()

    def decibels(self, options: Options) -> list[float]:
        """Mean PSNR to full compute at each budget."""
        growth, (order, damping), theta = options
        found = []
        for full in BUDGETS:
            method = auto(full, order=order, damping=damping, growth=growth, corrector=Replay(1, theta))
            with relcache.enable(self.pipe, method) as handle:
                found.append(float(psnr(self.sample(), self.reference).mean()))
                assert len(handle.full_steps) == full
        return found


def named(options: Options) -> str:
    """Options as a key."""
    growth, (order, damping), theta = options
    return f"growth {growth:g}, order {order}, damping {damping:g}, theta {theta:g}"


def main() -> None:
    """Run what has not been run, choose, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    known: dict[str, dict[str, list[float]]] = files.read_json(out)["runs"] if out.is_file() else {}
    for kind, subjects in SUBJECTS.items():
        for name in subjects:
            runs = known.setdefault(name, {})
            if all(named(options) in runs for options in GRIDS[kind]):
                continue
            subject = Subject(name)
            for options in GRIDS[kind]:
                if named(options) not in runs:
                    runs[named(options)] = subject.decibels(options)
                    console.print(f"{name}: {named(options)}: {runs[named(options)]}", highlight=False)
                    files.write_json(out, {"runs": known})
    rows = []
    for kind, subjects in SUBJECTS.items():
        for left_out in subjects:
            others = [name for name in subjects if name != left_out]

            def score(options: str, among: list[str] = others) -> float:
                return sum(sum(known[name][options]) for name in among)

            every = [named(options) for options in GRIDS[kind]]
            chosen, best = max(every, key=score), max(every, key=lambda options: sum(known[left_out][options]))
            rows.append({
                "judged on": left_out,
                "chosen on": others,
                "chosen": {chosen: known[left_out][chosen]},
                "default": {named(DEFAULTS[kind]): known[left_out][named(DEFAULTS[kind])]},
                "its own best": {best: known[left_out][best]},
            })  # fmt: skip
    files.write_json(out, {"budgets": BUDGETS, "samples": SAMPLES, "rows": rows, "runs": known})
    for row in rows:
        print(f"{row['judged on']}, chosen on {' and '.join(row['chosen on'])}")
        for what in ("chosen", "default", "its own best"):
            for options, values in row[what].items():
                print(f"  {what:<13} {' and '.join(f'{value:.1f}' for value in values)} dB: {options}")


if __name__ == "__main__":
    main()
