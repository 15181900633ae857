"""TaylorSeer and RFC as they are published, in another shape than the library's and the oracle's.

Each module keeps a dictionary from the order of a derivative to its value at the last full step. A full step makes a
new one: the derivative of order i + 1 is that of order i, minus the same of the dictionary before, over the number of
steps since. Nothing older is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny import relative_error, run_loop, tiny_dit
from torch import Tensor, nn

import relcache
from relcache import RCS, RFC, RFE, Method, Plan, Relational, Taylor, TaylorSeer

STEPS, LABELS = 18, torch.tensor([3, 5])
UNEQUAL = [0, 1, 2, 5, 6, 10, 12, 17]


class Derivatives:
    """Of one module's feature, by order."""

    def __init__(self, order: int):
        self.order, self.last = order, 0
        self.known: dict[int, Tensor] = {}

    def update(self, step: int, feature: Tensor) -> None:
        before, self.known = self.known, {0: feature}
        for i in range(self.order):
            if i in before and i in self.known:
                self.known[i + 1] = (self.known[i] - before[i]) / (step - self.last)
        self.last = step

    def change(self, step: int) -> Tensor:
        """What the expansion adds to the feature of the last full step."""
        terms = [(step - self.last) ** i / math.factorial(i) * value for i, value in self.known.items() if i > 0]
        return torch.stack(terms).sum(0)


class Published:
    """Stands in for attention and feed-forward of each block of a DiT that is called once in each step."""

    def __init__(self, model: nn.Module, order: int, full: Callable[[int], bool] | float, relational: bool):
        self.order, self.relational = order, relational
        self.wanted = full
        self.step, self.full, self.spent = -1, True, 0.0
        self.full_steps: list[int] = []
        modules = [module for block in model.transformer_blocks for module in (block.attn1, block.ff)]
        self.inputs = {module: Derivatives(order) for module in modules}
        self.outputs = {module: Derivatives(order) for module in modules}
        self.ratios: dict[nn.Module, Tensor] = {}
        model.register_forward_pre_hook(lambda *_: self.begin())
        self.first = modules[0]
        for module in modules:
            module.forward = partial(self.call, module, module.forward)

    def begin(self) -> None:
        self.step += 1

    def decide(self, given: Tensor) -> bool:
        if self.step < 2:
            return True
        if callable(self.wanted):
            return self.wanted(self.step)
        inputs = self.inputs[self.first]
        missed = given - (inputs.known[0] + inputs.change(self.step))
        self.spent += float((missed.abs().sum((1, 2)) / given.abs().sum((1, 2))).mean())
        return self.spent > self.wanted

    def call(self, module: nn.Module, compute: Callable[..., Tensor], given: Tensor, **nothing: None) -> Tensor:
        inputs, outputs = self.inputs[module], self.outputs[module]
        if module is self.first:
            self.full = self.decide(given)
        if module is self.first and self.full:
            self.full_steps.append(self.step)
            self.spent = 0.0
        if not self.full:
            change = outputs.change(self.step)
            if self.relational:
                moved = (given - inputs.known[0]).norm(dim=(1, 2), keepdim=True)
                change = self.ratios[module] * moved * change / change.norm(dim=(1, 2), keepdim=True)
            return outputs.known[0] + change
        computed = compute(given)
        if outputs.known:
            moved = (given - inputs.known[0]).norm(dim=(1, 2), keepdim=True)
            self.ratios[module] = (computed - outputs.known[0]).norm(dim=(1, 2), keepdim=True) / moved
        inputs.update(self.step, given)
        outputs.update(self.step, computed)
        return computed


def both(method: Method, order: int, full: Callable[[int], bool] | float, relational: bool) -> None:
    """The library's picture beside the published one's."""
    reference = tiny_dit()
    published = Published(reference, order, full, relational)
    expected = run_loop(reference, LABELS, STEPS)
    model = tiny_dit()
    with relcache.enable(model, method) as handle:
        picture = run_loop(model, LABELS, STEPS)
        report = handle.report()
    gaps = {b - a for a, b in zip(report.full_steps, report.full_steps[1:], strict=False)}
    assert report.full_steps == published.full_steps
    assert len(report.full_steps) < STEPS
    assert len(gaps) > 1, "equal gaps would hide the difference"
    assert report.fallbacks == {}
    assert relative_error(picture, expected) < 1e-4
    assert relative_error(picture, run_loop(model, LABELS, STEPS)) > 1e-2, "caching has to matter for this to be a test"


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_at_unequal_gaps(order: int) -> None:
    both(Method(Taylor(order), Plan(UNEQUAL)), order, UNEQUAL.__contains__, relational=False)


@pytest.mark.parametrize("order", [1, 2])
def test_rfe_at_unequal_gaps(order: int) -> None:
    both(Method(Relational(order), Plan(UNEQUAL)), order, UNEQUAL.__contains__, relational=True)


@pytest.mark.parametrize("interval", [4, 7, 9])
@pytest.mark.parametrize("relational", [False, True])
def test_intervals(interval: int, relational: bool) -> None:
    """The first gap after the warm-up is as many times the one before as the interval."""
    method = (RFE if relational else TaylorSeer)(2, interval=interval)
    both(method, 2, lambda step: (step - 1) % interval == 0, relational)


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("relational", [False, True])
def test_thresholds(threshold: float, relational: bool) -> None:
    both((RFC if relational else RCS)(2, threshold=threshold), 2, threshold, relational)
