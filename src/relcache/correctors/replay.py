"""Replay: interpolate the outputs in a gap, and let the scheduler repeat its updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relcache.checks import check_share
from relcache.correctors.base import Corrected, Corrector, Gap
from relcache.correctors.sampler import Predicts, Update, predicts, slope_at, twin_of

THETA: dict[Predicts | None, float] = {"velocity": 0.3}  # 1 for the others


@dataclass(frozen=True)
class Replay(Corrector):
    """Interpolates the outputs `v_j` of the updates `x_{j+1} = Φ_j(x_j, v_j)` between the full steps p and n:

        ṽ_j = Σ ℓ_i(j) v_i,   x̃_{p+1} = x_{p+1},   x̃_{j+1} = Φ_j(x̃_j, ṽ_j)

    with the Lagrange polynomials ℓ through n, p (`degree` 1), or n, p and the full step before (`degree` 2). The
    scheduler continues from x̃_n with a corrected history; the transformer is not called again.

    `v_n` belongs to `x_n`, not to `x̃_n`. At a fixed prediction of the clean sample, an output changes with its sample
    by `s = ∂v/∂x`, which is 1/σ_n for noise and velocity. With a fraction `theta` of it, and `c = x̃_n - x_n` from
    above,

        x̃_n = x_n + c / (1 + θρ),   v_n ← v_n + θ s (x̃_n - x_n),   ρ = -s Σ_j ℓ_n(j) ∂x_n/∂v_j

    This solves both equations for linear updates. The same updates of a single number give ρ. By default θ is 1, which
    keeps long gaps from diverging under noise prediction, and 0.3 in flow matching, where ρ is small. If the scheduler
    does not expose its noise level, θ is 0.

    Replay is the PEC mode of a predictor-corrector integrator, with any forecast as the predictor. It costs two
    latents, one more for `degree` 2, and the time of the gap's updates.

    Raises:
        ValueError: the degree is not 1 or 2, or theta is not from 0 to 1.
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
        theta = THETA.get(predicts(scheduler), 1.0) if self.theta is None else self.theta
        slope = slope_at(scheduler, update.others.get("timestep")) if theta else None
        response = _response(gap, [of_link[0] for of_link in weights]) if slope is not None else None
        twin, sample = gap.before, gap.sample
        assert sample is not None
        for link, of_link in zip(gap.links, weights, strict=True):
            output = sum(weight * value for weight, value in zip(of_link, outputs, strict=True))
            assert isinstance(output, Tensor)
            sample = link.joined(Update(output.to(update.output.dtype), sample, link.others).new_sample(twin.step))
        if slope is None or response is None or update.output.shape != sample.shape:
            return Corrected(sample, update.output, twin)
        slope = slope.to(sample.device, torch.float32)
        moved = (sample.float() - update.sample.float()) / (1 - theta * slope * response)
        output = update.output.float() + theta * slope * moved
        return Corrected((update.sample + moved).to(sample.dtype), output.to(update.output.dtype), twin)


def _response(gap: Gap, weights: Sequence[float]) -> Tensor | None:
    """Return `Σ_j w_j ∂x_n/∂v_j`, a 0-d float32 tensor; None if it differs between tokens.

    It is the result of the gap's updates of a single number, from 0, with `w_j` as outputs.
    """
    assert gap.sample is not None
    number = gap.sample.new_zeros((1,) * gap.sample.ndim, dtype=torch.float32)
    twin = twin_of(gap.before, lambda state: state.new_zeros((1,) * state.ndim, dtype=torch.float32))
    for link, weight in zip(gap.links, weights, strict=True):
        number = Update(torch.full_like(number, weight), number, link.others).new_sample(twin.step)
    return number.flatten()[0] if number.numel() == 1 else None


def lagrange(nodes: Sequence[int], step: int) -> list[float]:
    """Return the values at `step` of the Lagrange polynomials through `nodes`."""
    return [math.prod((step - other) / (node - other) for other in nodes if other != node) for node in nodes]
