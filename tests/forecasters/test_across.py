"""A forecaster whose processes each have some of the tokens makes the forecast of one process."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import relcache
from relcache.forecasters import Forecaster
from relcache.forecasters.base import Forecast
from relcache.forecasters.expansion import Gather

FORECASTERS = [
    relcache.Reuse(),
    relcache.Linear(),
    relcache.Taylor(2),
    relcache.Newton(2),
    relcache.Relational(1),
    relcache.Relational(2),
    relcache.Relational(2, "newton", norm="tensor"),
]
SHARES = (5, 3)  # tokens of each process
FULL = (6, 3, 1, 0)


class Exchange:
    """Lets threads exchange tensors, as processes do."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(len(SHARES), timeout=30)
        self._values: list[Any] = [None] * len(SHARES)

    def of(self, index: int) -> Gather:
        def gather(value: Tensor) -> Tensor:
            self._values[index] = value
            self._barrier.wait()
            together = torch.stack(self._values)
            self._barrier.wait()
            return together

        return gather


def forecast_of(forecaster: Forecaster, inputs: Tensor, outputs: Tensor, step: int) -> Tensor:
    """Return the forecast at `step`, after the full steps `FULL`, from features (step, batch, tokens, channels)."""
    state, most = None, max(forecaster.expansion.order, 1) + 1
    for index in reversed(range(len(FULL))):
        steps = FULL[index:][:most]
        state = forecaster.update(state, steps, inputs[FULL[index]], outputs[FULL[index]])
    coefficients = forecaster.coefficients(FULL[:most], step)
    strays = forecaster.may_stray(FULL[:most], coefficients)
    forecast = forecaster.forecast_far if strays else forecaster.forecast
    return forecast(state, coefficients, inputs[step]).output


@pytest.mark.parametrize("step", [7, 60], ids=["near", "far"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("forecaster", FORECASTERS, ids=repr)
def test_tokens_of_two_processes(forecaster: Forecaster, dtype: torch.dtype, step: int) -> None:
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(2, step + 1, 2, sum(SHARES), 4, generator=generator)
    inputs, outputs = moves.cumsum(1).mul(50).to(dtype).unbind(0)
    expected = forecast_of(forecaster, inputs, outputs, step)
    exchange, parts = Exchange(), [torch.empty(0)] * len(SHARES)

    def process(index: int, own: tuple[Tensor, Tensor]) -> None:
        parts[index] = forecast_of(forecaster.across(exchange.of(index)), *own, step)

    shares = zip(inputs.split(SHARES, 2), outputs.split(SHARES, 2), strict=True)
    threads = [threading.Thread(target=process, args=(index, own)) for index, own in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rounding = 1e-5 if dtype == torch.float32 else 2e-3
    assert (torch.cat(parts, 1) - expected).abs().max() <= rounding * expected.abs().max()


def test_only_what_is_right_for_divided_tokens_is_shared() -> None:
    class Own(relcache.Forecaster):
        expansion = relcache.Taylor(1).expansion

        def update(self, state: Any, steps: Any, input: Tensor, output: Tensor) -> Any:
            return output

        def forecast(self, state: Any, coefficients: Any, input: Tensor) -> Forecast:
            return Forecast(state)

    with pytest.raises(ValueError, match="Own does not say whether each process may have some tokens"):
        Own().across(lambda value: value[None])
    with pytest.raises(ValueError, match="token_stride=3 would select other tokens"):
        relcache.Relational(1, token_stride=3).across(lambda value: value[None])


def test_sharing_is_no_option() -> None:
    forecaster = relcache.Relational(2)
    assert forecaster.across(lambda value: value[None]) == forecaster
