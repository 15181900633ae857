"""Replay: interpolate the outputs of the gap, and let the scheduler make its own updates again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relcache.checks import check_share
from relcache.correctors.base import Corrected, Corrector, Gap
from relcache.correctors.sampler import Predicts, Update, predicts, slope_at, twin_of, updated

THETA: dict[Predicts | None, float] = {"velocity": 0.3}  # elsewhere 1


@dataclass(frozen=True)
class Replay(Corrector):
    """Between the full steps p and n, the outputs `v_j` of the scheduler's updates `x_{j+1} = Φ_j(x_j, v_j)` become

        ṽ_j = Σ ℓ_i(j) v_i,   x̃_{p+1} = x_{p+1},   x̃_{j+1} = Φ_j(x̃_j, ṽ_j)

    with the Lagrange polynomials ℓ through n, p (`degree` 1), or n, p and the full step before (`degree` 2). The
    scheduler goes on from x̃_n, with its history rewritten; the transformer is not called again.

    `v_n` belongs to `x_n`, not to `x̃_n`. While the prediction of the clean sample stays, an output changes by
    `s = ∂v/∂x` with its sample, 1/σ_n for noise and velocity. With a share `theta` of that, and `c = x̃_n - x_n` as
    above,

        x̃_n = x_n + c / (1 + θρ),   v_n ← v_n + θ s (x̃_n - x_n),   ρ = -s Σ_j ℓ_n(j) ∂x_n/∂v_j

    which is the solution of both equations where updates are linear. ρ is found by the same updates of one number. By
    default θ is 1, which keeps long gaps from diverging under noise prediction, and 0.3 in flow matching, where ρ is
    small. If the scheduler does not show its noise level, θ is 0.

    It is the PEC mode of a predictor-corrector integrator, with any forecast as the predictor. Costs two latents, one
    more for `degree` 2, and the time of the gap's updates.

    Raises:
        ValueError: a degree other than 1 or 2; a theta that is not between 0 and 1.
    """

    degree: int = 1
    theta: float | None = None

    def __post_init__(self) -> None:
        if self.degree not in (1, 2) or isinstance(self.degree, bool):
            raise ValueError(f"the degree of Replay is 1 or 2, got {self.degree!r}")
        if self.theta is not None:
            check_share("the theta of Replay", self.theta)

    @property
    def full_steps_needed(self) -> int:
        return self.degree

    def correct(self, gap: Gap, step: int, update: Update, scheduler: Any) -> Corrected:
        known = gap.known[: self.degree]
        nodes = [step, *(full.step for full in known)]
        outputs = [value.float() for value in (update.output, *(full.output for full in known))]
        weights = [lagrange(nodes, link.step) for link in gap.links]
        theta = self.theta
        if theta is None:
            theta = THETA.get(predicts(scheduler), 1.0)
        slope = slope_at(scheduler, update.others.get("timestep")) if theta else None
        response = _response(gap, [each[0] for each in weights]) if slope is not None else None
        twin, sample = gap.before, gap.sample
        assert sample is not None
        for link, each in zip(gap.links, weights, strict=True):
            output = sum(weight * value for weight, value in zip(each, outputs, strict=True))
            assert isinstance(output, Tensor)
            sample = link.joined(updated(twin.step, output.to(update.output.dtype), sample, link.others))
        if slope is None or response is None or update.output.shape != sample.shape:
            return Corrected(sample, update.output, twin)
        slope = slope.to(sample.device, torch.float32)
        moved = (sample.float() - update.sample.float()) / (1 - theta * slope * response)
        output = update.output.float() + theta * slope * moved
        return Corrected((update.sample + moved).to(sample.dtype), output.to(update.output.dtype), twin)


def _response(gap: Gap, weights: Sequence[float]) -> Tensor | None:
    """`Σ_j w_j ∂x_n/∂v_j`, a scalar: the gap's updates of one number, from nothing, with `w_j` as outputs; None where
    tokens differ."""
    assert gap.sample is not None
    number = gap.sample.new_zeros((1,) * gap.sample.ndim, dtype=torch.float32)
    twin = twin_of(gap.before, lambda state: state.new_zeros((1,) * state.ndim, dtype=torch.float32))
    for link, weight in zip(gap.links, weights, strict=True):
        number = updated(twin.step, torch.full_like(number, weight), number, link.others)
    return number.flatten()[0] if number.numel() == 1 else None


def lagrange(nodes: Sequence[int], at: int) -> list[float]:
    """The values at `at` of the Lagrange polynomials through `nodes`."""
    return [math.prod((at - other) / (node - other) for other in nodes if other != node) for node in nodes]
