"""A step costs no needless waiting for the device: none with a fixed plan, one with an error budget."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from tiny import call_along, trajectory
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import relcache
from relcache import FORA, RFC, RFE, Method, TaylorSeer


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU nothing is waited for, and the samples of a loop by hand are compared at each step."""
    monkeypatch.setattr("relcache.session.tracker.waits", lambda values: True)


class CalledReads(TorchFunctionMode):
    """Counts the calls that make a host wait for a device: reading numbers out of a tensor, or comparing contents."""

    NAMES = frozenset(
        {"item", "tolist", "numpy", "cpu", "equal", "allclose", "nonzero", "is_nonzero"}
        | {"__bool__", "__float__", "__int__", "__index__", "__contains__"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(function, "__name__", "") in self.NAMES
        return function(*args, **(kwargs or {}))


class DispatchedReads(TorchDispatchMode):
    """Counts the same among the operators, so as to see reads that no one called by name."""

    NAMES = frozenset({"_local_scalar_dense", "equal", "is_nonzero", "nonzero"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in self.NAMES
        return function(*args, **(kwargs or {}))


class HostReads:
    """Both counts; a read that one of them misses (inference mode hides some operators) is seen by the other."""

    def __enter__(self) -> HostReads:
        self.stack = ExitStack()
        self.called = self.stack.enter_context(CalledReads())
        self.dispatched = self.stack.enter_context(DispatchedReads())
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    @property
    def count(self) -> int:
        """Number of reads so far."""
        return max(self.called.count, self.dispatched.count)


def host_reads(model: DiTTransformer2DModel, branches: list[str], steps: int, inference: bool = False) -> int:
    """Host reads of one request of `steps` steps, its opening included."""
    samples = trajectory(steps)
    with torch.inference_mode(inference), HostReads() as reads:
        call_along(model, samples, dict.fromkeys(branches, range(steps)))
    return reads.count


# A request's first calls may compare timesteps and conditioning with those of the request before: a few reads, however
# many steps follow.
OPENING = 8

over_branches = pytest.mark.parametrize("branches", [["cond"], ["cond", "uncond"]], ids=["one branch", "two branches"])
over_modes = pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
over_fixed = pytest.mark.parametrize(
    "method", [FORA(4), TaylorSeer(2, interval=4), RFE(2, interval=4)], ids=lambda m: f"{m.name}-{m.order}"
)


@over_fixed
@over_branches
@over_modes
def test_fixed_plan_never_waits(
    method: Method, branches: list[str], inference: bool, model: DiTTransformer2DModel
) -> None:
    """No read grows with the steps: neither in the first request nor in those after it."""
    relcache.enable(model, method)
    assert host_reads(model, branches, 9, inference) <= OPENING
    second = host_reads(model, branches, 9, inference)
    assert second <= OPENING
    assert host_reads(model, branches, 18, inference) == second


@over_branches
@over_modes
def test_error_budget_waits_once_a_step(branches: list[str], inference: bool, model: DiTTransformer2DModel) -> None:
    relcache.enable(model, RFC(2, threshold=0.6))
    for steps in (10, 20):
        reads = host_reads(model, branches, steps, inference)
        assert steps - 2 <= reads <= steps - 2 + OPENING


@over_modes
def test_host_reads_are_seen(inference: bool) -> None:
    """The counter itself: each of these waits for the device."""
    value = torch.tensor(3.0)
    with torch.inference_mode(inference), HostReads() as reads:
        assert value.item() == 3
        assert float(value) == 3
        assert bool(value > 2)
        assert torch.equal(value, value)
    assert reads.count == 4


def test_hidden_host_reads_are_seen() -> None:
    """A tensor where a number is expected is read without a call that says so."""
    value, number = torch.ones(3), torch.tensor(2.0)
    with HostReads() as reads:
        torch.add(value, value, alpha=number)
    assert reads.count == 1
