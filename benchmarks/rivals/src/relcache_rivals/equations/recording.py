"""Record the stack's features in full compute, for methods that need calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relcache.api import Handle, enable
from relcache.bench.rivals.base import only_transformer
from relcache.bench.sampling.batches import Sampler
from relcache.forecasters.base import Forecast, Forecaster
from relcache.forecasters.expansion import Expansion
from relcache.method import Method
from relcache.schedules import Always, Schedule

MOST_VALUES = 2**15  # values of a step's features that costs are measured on


class Stream(NamedTuple):
    """The stack's input and its change (output minus input) in each step, both (steps, rows, …)."""

    inputs: Tensor
    changes: Tensor

    @property
    def outputs(self) -> Tensor:
        """The last block's output in each step, (steps, rows, …)."""
        return self.inputs + self.changes


@dataclass(frozen=True)
class Recorder(Forecaster):
    """Keeps the input and output of every step, and forecasts nothing."""

    @property
    def expansion(self) -> Expansion:
        return Expansion(0)

    def update(self, state: Any, steps: Sequence[int], input: Tensor, output: Tensor) -> Any:
        return (*(state or ()), (input.clone(), output.clone()))

    def forecast(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        raise TypeError("a recorder forecasts nothing: give it the schedule Always")


def record(
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    schedule: Schedule | None = None,
    watching: Callable[[Handle], None] = lambda handle: None,
) -> list[Stream]:
    """Sample with full compute, and return the streams of all branches and batches.

    Args:
        sampler, seeds, conditions: what to sample.
        schedule: a schedule that makes each step full, by default `Always`.
        watching: called with the handle of each batch before it is sampled.
    """
    method = Method(Recorder(), schedule or Always(), name="recorder", granularity="stack")
    found = []
    for start in range(0, len(seeds), sampler.batch):
        rows = slice(start, start + sampler.batch)
        with enable(sampler.pipeline, method) as handle:
            watching(handle)
            sampler.call(seeds[rows], conditions[rows])
            for _, _, state in handle.states():
                inputs, changes = zip(*state, strict=True)
                found.append(Stream(torch.stack(inputs).float(), torch.stack(changes).float()))
    return found


def record_predictions(sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> Tensor:
    """Sample with full compute, and return evenly spaced values of the model's outputs, (steps, values).

    A step's values are those of all samples and guidance branches, at most 2^15.
    """
    model, batches = only_transformer(sampler.pipeline), []
    for start in range(0, len(seeds), sampler.batch):
        rows, calls = slice(start, start + sampler.batch), list[Tensor]()

        def keep(module: nn.Module, args: Any, output: Any, calls: list[Tensor] = calls) -> None:
            calls.append(output[0].detach().float().flatten())

        hook = model.register_forward_hook(keep)
        try:
            sampler.call(seeds[rows], conditions[rows])
        finally:
            hook.remove()
        batches.append(torch.stack(calls).reshape(sampler.steps, -1))  # branches may have calls of their own
    return spaced(torch.cat(batches, 1))


def values_of(streams: Sequence[Stream]) -> Tensor:
    """Return evenly spaced values of all streams' outputs in each step, (steps, values), at most 2^15."""
    return spaced(torch.cat([stream.outputs.flatten(1) for stream in streams], 1))


def spaced(values: Tensor) -> Tensor:
    """Return at most 2^15 evenly spaced columns of `values`, (steps, …), on the CPU."""
    stride = -(-values.shape[1] // MOST_VALUES)
    return values[:, :: stride + 1 - stride % 2].cpu()  # odd, so coprime to the usual numbers of channels
