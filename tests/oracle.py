"""The equations of feature caching as plainly as they are printed, to compare the library with.

They are written from the formulas, not from the library. Whole histories are kept. Each step computes every difference
and norm anew from full tensors. DiT's forward pass is written out block by block. Time runs downwards, as in the
papers: step j of n has the position n - j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """The forecast, and either a fixed interval or a threshold."""

    forecast: str  # "reuse", "taylor", "newton" or "relational"
    order: int = 0
    direction: str = "taylor"  # of the relational forecast
    norm: str = "sample"
    interval: int | None = None
    threshold: float | None = None
    warmup: int = 2

    def __str__(self) -> str:
        when = f"interval={self.interval}" if self.threshold is None else f"threshold={self.threshold}"
        return f"{self.forecast}-{self.order}-{self.direction}-{self.norm}-{when}-warmup={self.warmup}"

    @property
    def form(self) -> str:
        """Return the expansion of outputs and of the first module's input."""
        return self.direction if self.forecast == "relational" else self.forecast


@dataclass
class Past:
    """All full steps of one module in one branch, newest first."""

    positions: list[int] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def taylor_term(values: list[Tensor], positions: list[int], now: int, order: int) -> Tensor:
    """Return Σ (k^i / i!) D_i(t), with each D_i divided by the gap at the full step where it is taken."""

    def difference(i: int, at: int) -> Tensor:
        if i == 0:
            return values[at]
        return (difference(i - 1, at) - difference(i - 1, at + 1)) / (positions[at + 1] - positions[at])

    k, total = positions[0] - now, torch.zeros_like(values[0])
    for i in range(1, min(order, len(values) - 1) + 1):
        total = total + k**i / math.factorial(i) * difference(i, 0)
    return total


def newton_term(values: list[Tensor], positions: list[int], now: int, order: int) -> Tensor:
    """Return (t - t_0) O[t_0, t_1] + (t - t_0)(t - t_1) O[t_0, t_1, t_2] + … over true positions."""

    def divided(first: int, last: int) -> Tensor:
        if first == last:
            return values[first]
        return (divided(first, last - 1) - divided(first + 1, last)) / (positions[first] - positions[last])

    total, weight = torch.zeros_like(values[0]), 1.0
    for i in range(1, min(order, len(values) - 1) + 1):
        weight = weight * (now - positions[i - 1])
        total = total + weight * divided(0, i)
    return total


def expansion_term(form: str, values: list[Tensor], positions: list[int], now: int, order: int) -> Tensor:
    """Return the change that an expansion adds to the newest value."""
    if form == "reuse":
        return torch.zeros_like(values[0])
    term = taylor_term if form == "taylor" else newton_term
    return term(values, positions, now, order)


def norms(value: Tensor, norm: str) -> Tensor:
    """Return L2 norms in a shape that multiplies `value`: scalar, or (batch, 1, …)."""
    if norm == "tensor":
        return value.double().square().sum().sqrt()
    return value.double().square().flatten(1).sum(1).sqrt().reshape(-1, *[1] * (value.ndim - 1))


def forecast(recipe: Recipe, past: Past, now: int, present_input: Tensor) -> Tensor:
    """Return the forecast output of a skipped module."""
    newest = past.outputs[0]
    term = expansion_term(recipe.form, past.outputs, past.positions, now, recipe.order)
    if recipe.forecast != "relational":
        return newest + term
    if not term.any():
        return newest  # an output that stands still has no direction
    output_change = norms(past.outputs[0] - past.outputs[1], recipe.norm)
    input_change = norms(past.inputs[0] - past.inputs[1], recipe.norm)
    ratio = output_change / input_change
    moved = norms(present_input - past.inputs[0], recipe.norm)
    unit = term / norms(term, recipe.norm)
    return (newest + ratio * moved * unit).to(newest.dtype)


def input_error(recipe: Recipe, past: Past, now: int, present_input: Tensor) -> float:
    """Return E = ‖I - I_T‖₁ / ‖I‖₁ of the whole tensor, or its mean over samples."""
    predicted = past.inputs[0] + expansion_term(recipe.form, past.inputs, past.positions, now, recipe.order)
    missed, size = (present_input - predicted).double().abs(), present_input.double().abs()
    if recipe.norm == "tensor":
        return float(missed.sum() / size.sum())
    return float((missed.flatten(1).sum(1) / size.flatten(1).sum(1)).mean())


class Oracle:
    """A DiT sampled with caching. `begin_step` opens a step; then one call per branch."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int):
        self.model, self.recipe, self.steps = model, recipe, steps
        self.step = -1
        self.pasts: dict[str, dict[str, Past]] = {}
        self.full_steps: list[int] = []
        self.errors: list[float | None] = []
        self.spent = 0.0
        self.full: bool | None = None

    def begin_step(self) -> None:
        """Open the next step, whose first module decides."""
        self.step += 1
        self.full = None
        self.errors.append(None)

    def decide(self, past: Past, present_input: Tensor) -> bool:
        """Decide whether the present step is full."""
        recipe, step = self.recipe, self.step
        if len(past.positions) < (2 if recipe.order > 0 else 1) or step < recipe.warmup:
            full = True
        elif recipe.interval is not None:
            full = (step - (recipe.warmup - 1)) % recipe.interval == 0
        else:
            self.errors[step] = input_error(recipe, past, self.steps - step, present_input)
            self.spent += self.errors[step]
            full = self.spent > recipe.threshold
        if full:
            self.full_steps.append(step)
            self.spent = 0.0
        return full

    def module(self, branch: str, name: str, module: nn.Module, present_input: Tensor) -> Tensor:
        """Return the output of one module, computed at a full step and forecast at a cached one."""
        past = self.pasts.setdefault(branch, {}).setdefault(name, Past())
        now = self.steps - self.step
        if self.full is None:
            self.full = self.decide(past, present_input)
        if not self.full:
            return forecast(self.recipe, past, now, present_input)
        output = module(present_input)
        past.positions.insert(0, now)
        past.inputs.insert(0, present_input)
        past.outputs.insert(0, output)
        return output

    @torch.no_grad()
    def __call__(self, sample: Tensor, timestep: Tensor, labels: Tensor, branch: str = "only") -> Tensor:
        """Run DiT's forward pass: patches, blocks with adaptive norms and gates, un-patching."""
        model = self.model
        hidden = model.pos_embed(sample)
        for number, block in enumerate(model.transformer_blocks):
            condition = block.norm1.emb(timestep, labels, hidden_dtype=hidden.dtype)
            parts = block.norm1.linear(F.silu(condition))[:, None].chunk(6, dim=-1)
            shift, scale, gate, shift_forward, scale_forward, gate_forward = parts
            normed = F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift
            hidden = hidden + gate * self.module(branch, f"attention {number}", block.attn1, normed)
            normed = block.norm3(hidden) * (1 + scale_forward) + shift_forward
            hidden = hidden + gate_forward * self.module(branch, f"feed-forward {number}", block.ff, normed)
        condition = model.transformer_blocks[0].norm1.emb(timestep, labels, hidden_dtype=hidden.dtype)
        shift, scale = model.proj_out_1(F.silu(condition))[:, None].chunk(2, dim=-1)
        hidden = model.proj_out_2(F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        batch, tokens, _ = hidden.shape
        side, patch = math.isqrt(tokens), model.config.patch_size
        patches = hidden.reshape(batch, side, side, patch, patch, -1)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * patch, side * patch)
