"""Requests for the tests: of pipelines that share a transformer, and of loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from tiny import noise_for, timesteps_for
from torch import Tensor

from relcache import FORA, RFC, TaylorSeer

STEPS = 10
METHODS = [FORA(4), TaylorSeer(1, interval=4), RFC(2, threshold=0.6)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


class Stop(Exception):
    """Raised by a callback in the middle of a request."""


def run(pipe: Any, call: dict[str, Any], seed: int = 0, steps: int = STEPS, **options: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), **options}
    return torch.as_tensor(pipe(**call, output_type="latent", return_dict=False)[0])


def with_scheduler(pipe: Any) -> Any:
    """Return a second pipeline with the same models and its own scheduler."""
    return type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})


def options_of(pipe: Any) -> dict[str, Any]:
    if isinstance(pipe, diffusers.FluxImg2ImgPipeline):
        return {"image": torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(5)), "strength": 0.8}
    return {}


def stop_at(step: int) -> Callable[..., Any]:
    def callback(pipe: Any, present: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if present == step:
            raise Stop
        return tensors

    return callback


def loop(
    model: Any, seed: int = 0, label: int = 3, steps: int = STEPS, start: int = 0, stop: int | None = None,
    timesteps: list[Any] | None = None, rows: int = 2,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield the samples of a loop that makes a new timestep and new conditioning at each step."""
    sample = noise_for(list(range(10 * seed, 10 * seed + rows)))
    table = timesteps if timesteps is not None else timesteps_for(steps).tolist()
    for step, time in list(enumerate(table))[start:stop]:
        with torch.no_grad():
            time = time if isinstance(time, Tensor) else torch.full((rows,), float(time))
            out = model(sample, timestep=time.expand(rows), class_labels=torch.full((rows,), label)).sample
        sample = sample + 0.1 * out / out.norm() * sample.norm() + 0 * step
        yield sample


def last(samples: Iterator[Tensor]) -> Tensor:
    return list(samples)[-1]
