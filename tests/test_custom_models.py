"""A transformer that relcache does not know, described by a spec of one's own, and modules that are used unusually."""

from __future__ import annotations

import pytest
import torch
from tiny import timesteps_for
from torch import Tensor, nn

import relcache
from relcache import FORA, ModelSpec, TaylorSeer

SPEC = ModelSpec("Stack", modules=("layers.*.mix",), conditioning=("label",), timestep="t")


class Layer(nn.Module):
    def __init__(self, use: str):
        super().__init__()
        self.mix, self.use = nn.Linear(4, 4), use

    def forward(self, hidden: Tensor) -> Tensor:
        if self.use == "twice":
            return hidden + torch.cat([self.mix(part) for part in hidden.chunk(2, dim=1)], dim=1)
        change = self.mix(hidden)
        if self.use == "in place":
            change += hidden
            return change
        return hidden + change


class Stack(nn.Module):
    def __init__(self, use: str = "once"):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(Layer(use) for _ in range(3))

    def forward(self, hidden: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = hidden + t.reshape(-1, 1, 1) / 1000
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


@torch.no_grad()
def run(model: Stack, steps: int = 10) -> list[Tensor]:
    hidden = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    return [model(hidden, t.expand(2)) for t in timesteps_for(steps)]


def test_a_spec_of_ones_own() -> None:
    model = Stack().eval()
    handle = relcache.enable(model, TaylorSeer(1, 4), spec=SPEC)
    run(model)
    assert handle.units == ["layers.0.mix", "layers.1.mix", "layers.2.mix"]
    assert handle.report().full_steps == [0, 1, 5, 9]
    assert handle.report().flops == 4 * 3 * 2 * 2 * 6 * 4 * 4


def test_an_output_changed_in_place_is_noticed() -> None:
    """At one and the same input reuse must give what full compute gives, though the block writes into the output."""
    model, plain = Stack("in place").eval(), Stack("in place").eval()
    hidden = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        handle = relcache.enable(model, FORA(6), spec=SPEC)
        for t in torch.arange(10, 0, -1.0):  # hardly moves the input, and with it the output
            difference = model(hidden, t.expand(2)) - plain(hidden, t.expand(2))
            assert difference.abs().max() < 0.1
    report = handle.report()
    assert report.nfc == 3  # noticed at the second full step; copies are cached from there on
    assert report.flops == 3 * report.full_flops // 10


def test_a_module_called_twice_is_refused() -> None:
    model = Stack("twice").eval()
    relcache.enable(model, FORA(4), spec=SPEC)
    with pytest.raises(TypeError, match=r"layers\.0\.mix was called twice in one forward"):
        run(model)
