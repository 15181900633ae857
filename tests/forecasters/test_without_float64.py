"""Devices without float64 (MPS): nothing of a request asks for it there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import NULL_CLASS, noise_for, tiny_dit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import relcache
from relcache.session.tracker import index_in


class WithoutFloat64(TorchDispatchMode):
    """Fails where an operation returns float64, as on MPS."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype, in {func}")
        return result


@torch.no_grad()
def sample(model: Any, steps: int = 12) -> Tensor:
    """Two branches, and a new tensor as each timestep, so that timesteps are compared by their content."""
    value = noise_for([0, 1])
    for step in range(steps):
        timestep = torch.tensor([900.0 - 70 * step]).expand(2)
        for label in (3, NULL_CLASS):
            labels = torch.tensor([label, label])
            value = value - 0.05 * model(value, timestep=timestep.clone(), class_labels=labels).sample
    return value


METHODS = [
    relcache.FORA(3),
    relcache.TaylorSeer(2, interval=3),
    relcache.RFE(2, interval=3),
    relcache.RCS(2, threshold=0.5),
    relcache.RFC(2, threshold=0.5),
]


@pytest.mark.parametrize("granularity", ["module", "block", "stack"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_request_asks_for_no_float64(
    monkeypatch: pytest.MonkeyPatch, method: relcache.Method, granularity: Any
) -> None:
    model, expected = tiny_dit(), tiny_dit()
    relcache.enable(expected, method, granularity=granularity)
    picture = sample(expected)
    monkeypatch.setattr("relcache.storage.identity.WITHOUT_FLOAT64", frozenset({"mps", "cpu"}))
    handle = relcache.enable(model, method, granularity=granularity)
    with WithoutFloat64():
        got = sample(model)
    assert torch.allclose(got, picture, rtol=1e-3, atol=1e-4)
    assert len(handle.full_steps) < 12


def test_the_place_among_a_schedulers_timesteps_is_found_on_the_host() -> None:
    """The table is copied before it is widened: MPS has no float64 to widen it in."""
    copied: list[str] = []

    class Table(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            copied.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    table = torch.linspace(1000, 0, 11).as_subclass(Table)
    assert index_in(table, torch.tensor([700.0]), -1) == 3
    assert copied.index("cpu") < copied.index("to")
