"""A transformer that relcache does not know, described by a spec of one's own, and modules that are used unusually."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    handle = relcache.enable(model, TaylorSeer(1, interval=4), spec=SPEC)
    run(model)
    assert handle.units == ["layers.0.mix", "layers.1.mix", "layers.2.mix"]
    assert handle.report().full_steps == [0, 1, 5, 9]
    assert handle.report().flops == 4 * 3 * 2 * 2 * 6 * 4 * 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: ModelSpec("Stack", modules="layers.*.mix"), "modules of the spec of Stack is a tuple"),
        (lambda: ModelSpec("Stack", ("layers.*.mix",), conditioning="label"), "conditioning of the spec .* is a tuple"),
        (lambda: ModelSpec("Stack", (None,)), "are patterns or Parts, got None"),
        (lambda: ModelSpec("Stack", ("layers.*.mix",), ("lable",), "t"), "'lable', which Stack does not take; did you"),
        (lambda: ModelSpec("Stack", ("layers.*.mix",), (), "t", sample="hiden"), "'hiden'.*did you mean 'hidden'"),
        (lambda: ModelSpec("Stack", (relcache.joint("layers.*.mix", "imput"),), (), "t"), "'imput'.*mean 'input'"),
        (lambda: ModelSpec("Stack", ("layers.*.mix", "layers.*.mix"), (), "t"), "names layers.0.mix twice"),
        (lambda: ModelSpec("Stack", ("layers.*", "layers.*.mix"), (), "t"), "layers.0.mix, which is inside layers.0"),
        (lambda: ModelSpec("Stack", ("layers",), (), "t"), "named 'layers' and Stack has none"),
    ],
)
def test_specs_that_make_no_sense(spec: Callable[[], ModelSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relcache.enable(Stack(), FORA(3), spec=spec())


def test_modules_that_a_forward_does_not_call_are_noticed() -> None:
    model = Stack().eval()
    model.spare = nn.Linear(4, 4)
    handle = relcache.enable(model, FORA(3), spec=ModelSpec("Stack", ("spare",), (), "t"))
    with pytest.warns(UserWarning, match="does not call spare"):
        run(model)
    assert "reached none of the cached modules" in handle.report().notes[0]


def check_gradients(model: nn.Module) -> None:
    """Of four steps the two full ones may be differentiated, the two cached ones not."""
    for step, t in enumerate(timesteps_for(4)):
        hidden = torch.randn(2, 6, 4, requires_grad=True)
        output = model(hidden, t.expand(2))
        if step in (0, 1):
            output.sum().backward()
            assert hidden.grad is not None
        else:
            with pytest.raises(RuntimeError, match=r"no gradients.*disable\(\)"):
                output.sum().backward()


def test_a_gradient_through_a_cached_step_is_refused() -> None:
    """Sampling with gradients on goes on; asking for one that would be wrong is an error."""
    model = Stack().eval()
    relcache.enable(model, FORA(3), spec=SPEC)
    check_gradients(model)


def test_a_gradient_through_a_cached_parallel_unit_is_refused() -> None:
    """Such a unit's exit reads the empty features of its entry, through which no gradient would come."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))])

        def forward(self, hidden: Tensor, t: Tensor) -> Tensor:
            return hidden.detach() + self.layers[0](hidden)

    model = Parallel().eval()
    spec = ModelSpec("Parallel", (relcache.parallel("layers.*", ("0",), "1"),), (), "t")
    relcache.enable(model, FORA(3), spec=spec)
    check_gradients(model)


def test_arguments_that_cannot_be_copied_cost_the_count_of_flops() -> None:
    class Keeper(Stack):
        def forward(self, hidden: Tensor, t: Tensor, label: Any = None) -> Tensor:
            return super().forward(hidden, t)

    model = Keeper().eval()
    handle = relcache.enable(model, FORA(3), spec=SPEC)
    with torch.no_grad():
        for t in timesteps_for(4):
            model(torch.ones(2, 6, 4), t.expand(2), label=(number for number in range(3)))
    assert handle.report().steps == 4
    assert handle.report().flops is None
    assert "FLOPs could not be counted" in handle.report().notes[-1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forecast_may_be_written_into(mode: Any) -> None:
    """At one and the same input reuse must give what full compute gives, though the block writes into the output."""
    model, plain = Stack("in place").eval(), Stack("in place").eval()
    hidden = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    with mode():
        handle = relcache.enable(model, FORA(6), spec=SPEC)
        for t in torch.arange(10, 0, -1.0):  # hardly moves the input, and with it the output
            difference = model(hidden, t.expand(2)) - plain(hidden, t.expand(2))
            assert difference.abs().max() < 0.1
    report = handle.report()
    assert report.full_steps == [0, 1, 7]
    assert report.flops == 3 * report.full_flops // 10


class Adder(nn.Module):
    """Adds what each layer makes of the features to them: in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, hidden: Tensor, t: Tensor) -> Tensor:
        hidden = hidden * (1 + t[:, None, None] / 100)
        for layer in self.layers:
            if self.in_place:
                hidden += layer(hidden)
            else:
                hidden = hidden + layer(hidden)
        return hidden


@pytest.mark.parametrize("granularity", ["module", "block"])
@pytest.mark.parametrize(
    "method",
    [relcache.RFE(1, interval=3), relcache.RFE(2, interval=3), relcache.RFC(1, threshold=0.5), relcache.FORA(3)],
)
def test_an_input_may_be_written_over(method: relcache.Method, granularity: str) -> None:
    """The features that a unit was given are read again after it has run, and at the next full step."""
    part = relcache.Part("layers.*", residual=granularity == "block")
    spec = ModelSpec("Adder", (part,), (), "t")
    generator = torch.Generator().manual_seed(1)
    start, end = (torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    outputs, steps = [], []
    for in_place in (False, True):
        model = Adder(in_place).eval()
        handle = relcache.enable(model, method, spec=spec)
        with torch.no_grad():
            outputs.append(
                [model(torch.lerp(start, end, n / 10), t.expand(2)) for n, t in enumerate(timesteps_for(10))]
            )
        steps.append(handle.full_steps)
    assert steps[0] == steps[1]
    assert 1 < len(steps[0]) < 10
    for apart, together in zip(*outputs, strict=True):
        assert torch.equal(apart, together)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_lies_between_the_blocks_of_a_stack_may_write_in_place(compiled: bool) -> None:
    """On a cached step each block hands on what it was given: that may be the input which the change is added to."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer("once") for _ in range(3))

        def forward(self, hidden: Tensor, t: Tensor) -> Tensor:
            hidden = hidden * 1.0
            for layer in self.layers:
                hidden = layer(hidden)
                hidden.mul_(0.9)
            return hidden

    def example(config: Any, size: relcache.Size) -> dict[str, Any]:
        return {"hidden": torch.randn(size.batch, size.height * size.width, 4), "t": torch.zeros(size.batch)}

    model = Between().eval()
    if compiled:
        model.compile(backend="eager")
    spec = ModelSpec("Between", ("layers.*.mix",), (), "t", inputs=example)
    handle = relcache.enable(model, FORA(3), spec=spec, granularity="stack")
    assert handle.units == ["layers"]
    generator = torch.Generator().manual_seed(1)
    start, end = (torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    change = None
    with torch.no_grad():
        for step, t in enumerate(timesteps_for(10)):
            hidden = torch.lerp(start, end, step / 10)
            present = model(hidden, t.expand(2)) / 0.9 - hidden  # what the stack has added
            if step in (0, 1, 4, 7):
                change = present
            assert change is not None
            assert torch.allclose(present, change, atol=1e-5)
    assert handle.full_steps == [0, 1, 4, 7]


def test_a_module_called_twice_is_refused() -> None:
    model = Stack("twice").eval()
    relcache.enable(model, FORA(4), spec=SPEC)
    with pytest.raises(TypeError, match=r"layers\.0\.mix was called twice in one forward"):
        run(model)
