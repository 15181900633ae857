"""Forecasters that were tried and rejected; benchmarks/correction.py has a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache import Forecaster
from relcache.forecasters.base import Forecast
from relcache.forecasters.expansion import Expansion, weighted_sum


class Slope(NamedTuple):
    stack: Tensor
    gap: int
    weight: Tensor | None


@dataclass(frozen=True)
class Foretold(Forecaster):
    """Weigh the last slope, for each sample, by how well the slope before it predicted the last full step."""

    reads_input = False

    @property
    def expansion(self) -> Expansion:
        return Expansion(1)

    @property
    def full_steps_needed(self) -> int:
        return 1

    def update(self, state: Slope | None, steps: Sequence[int], input: Tensor, output: Tensor) -> Slope:
        gap = steps[0] - steps[1] if len(steps) > 1 else 0
        weight = None
        if state is not None and state.gap:
            past, change = (value.flatten(1).float() for value in (state.stack[:, 1], output - state.stack[:, 0]))
            share = (past * change).sum(1) / (past * past).sum(1).clamp(min=1e-12)
            weight = (share * state.gap / gap).clamp(0, 1.5)
        return Slope(self.expansion.extend(None if state is None else state.stack, steps, output), gap, weight)

    def forecast(self, state: Slope, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return Forecast(weighted_sum(state.stack, coefficients, state.weight))


class Both(NamedTuple):
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Chosen(Forecaster):
    """For each sample take reuse, the last slope or order 2: the one that best predicts the known present input."""

    @property
    def expansion(self) -> Expansion:
        return Expansion(2)

    @property
    def full_steps_needed(self) -> int:
        return 1

    def update(self, state: Both | None, steps: Sequence[int], input: Tensor, output: Tensor) -> Both:
        known = (None, None) if state is None else state
        pairs = zip(known, (input, output), strict=True)
        return Both(*(self.expansion.extend(stack, steps, value) for stack, value in pairs))

    def forecast(self, state: Both, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        tried = [coefficients[:order] for order in range(len(coefficients) + 1)]
        guesses = [weighted_sum(state.inputs, each) for each in tried]
        errors = torch.stack([(guess - input).flatten(1).norm(dim=1) for guess in guesses])
        outputs = torch.stack([weighted_sum(state.outputs, each) for each in tried])
        return Forecast(outputs[errors.argmin(0), torch.arange(len(input), device=input.device)])


@dataclass(frozen=True)
class Ridge(Forecaster):
    """Fit a parabola to all past full steps by least squares, with a ridge on slope and curvature.

    Newer steps weigh more. As with Spectrum's Chebyshev fit, the parabola need not pass through the last one.
    """

    ridge: float = 1e-3
    reads_input = False

    @property
    def expansion(self) -> Expansion:
        return Expansion(64)

    @property
    def full_steps_needed(self) -> int:
        return 1

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        scale = max(steps[0] - steps[min(3, len(steps) - 1)], 1)
        positions = torch.tensor([(past - steps[0]) / scale for past in steps], dtype=torch.float64)
        weight = (2.0 * positions).exp()
        basis = torch.stack([positions**0, positions, positions**2], 1)
        wanted = torch.tensor([1.0, (step - steps[0]) / scale, ((step - steps[0]) / scale) ** 2], dtype=torch.float64)
        normal = basis.T @ (weight[:, None] * basis) + self.ridge * torch.diag(torch.tensor([0.0, 1.0, 1.0]).double())
        return (weight * (basis @ torch.linalg.solve(normal, wanted))).tolist()

    def update(self, state: list[Tensor] | None, steps: Sequence[int], input: Tensor, output: Tensor) -> list[Tensor]:
        return [output.clone(), *(state or [])][: len(steps)]

    def forecast(self, state: list[Tensor], coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        total: Any = sum(weight * value for weight, value in zip(coefficients, state, strict=True))
        return Forecast(total)
