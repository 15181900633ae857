"""What diffusers asks of its own caches on a model, asked of relcache on FLUX.

The checks are those of `CacheTesterMixin` in diffusers' source tree (tests/models/testing_utils/cache.py), in our words
and through a shim with its method names.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from small_pipelines import flux_transformer
from torch import Tensor

import relcache
from relcache.engine.forwards import replacement_of

# All calls share one timestep, of which relcache warns.
pytestmark = pytest.mark.filterwarnings("ignore:relcache. the transformer was called again at a request's first")


class Shim(FluxTransformer2DModel):
    """FLUX whose `enable_cache` is relcache's `enable`."""

    handle: relcache.Handle | None = None

    @property
    def is_cache_enabled(self) -> bool:
        return self.handle is not None

    def enable_cache(self, config: relcache.Method) -> None:
        if self.is_cache_enabled:
            raise ValueError("Caching has already been enabled")
        super().__setattr__("handle", relcache.enable(self, config))

    def disable_cache(self) -> None:
        if self.handle is not None:
            self.handle.disable()
        super().__setattr__("handle", None)

    def _reset_stateful_cache(self) -> None:
        if self.handle is not None:
            self.handle.reset()


CONFIGS = [
    relcache.FORA(3, warmup=1),
    relcache.TaylorSeer(1, interval=3, warmup=2),
    relcache.RFC(1, threshold=1e9, warmup=2),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.name)
def config(request: pytest.FixtureRequest) -> relcache.Method:
    return request.param


@pytest.fixture
def model() -> Shim:
    model = flux_transformer()
    model.__class__ = Shim
    return model


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 6, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=generator),
        "pooled_projections": torch.randn(1, 16, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }


@torch.no_grad()
def call(model: Shim, given: dict[str, Any]) -> Tensor:
    return model(**given, return_dict=False)[0]


def replaced(model: Shim) -> int:
    return sum(replacement_of(module.__dict__.get("forward")) is not None for module in model.modules())


def test_the_state_follows_enable_and_disable(model: Shim, config: relcache.Method) -> None:
    assert not model.is_cache_enabled
    model.enable_cache(config)
    assert model.is_cache_enabled
    model.disable_cache()
    assert not model.is_cache_enabled


def test_enabling_twice_is_an_error(model: Shim, config: relcache.Method) -> None:
    model.enable_cache(config)
    with pytest.raises(ValueError, match="Caching has already been enabled"):
        model.enable_cache(config)
    model.disable_cache()


def test_what_is_hooked_is_released(model: Shim, config: relcache.Method) -> None:
    model.enable_cache(config)
    # the model's own, three of the double block, three of each single block
    assert replaced(model) == 1 + 3 + 2 * 3
    model.disable_cache()
    assert replaced(model) == 0


def test_a_later_call_is_forecast(model: Shim, config: relcache.Method) -> None:
    """Calls that change the sample and the timestep are steps."""
    model.enable_cache(config)
    given, noise = inputs(), torch.Generator().manual_seed(1)
    for _ in range(config.schedule.warmup + (config.forecaster.full_steps_needed > 1)):
        call(model, given)
        given["hidden_states"] = given["hidden_states"] + 0.2 * torch.randn(1, 6, 16, generator=noise)
        given["timestep"] = given["timestep"] - 0.01
    cached = call(model, given)
    assert bool(torch.isfinite(cached).all())
    model.disable_cache()
    assert not torch.allclose(call(model, given), cached, atol=1e-5)


def test_contexts_are_kept_apart(model: Shim, config: relcache.Method) -> None:
    model.enable_cache(config)
    given = inputs()
    with model.cache_context("context_1"):
        first = call(model, given)
    with model.cache_context("context_2"):
        second = call(model, given)
    assert torch.equal(first, second)
    model.disable_cache()


def test_a_reset(model: Shim, config: relcache.Method) -> None:
    model.enable_cache(config)
    given = inputs()
    first = call(model, given)
    call(model, {**given, "hidden_states": given["hidden_states"] * 0.9, "timestep": given["timestep"] - 0.01})
    model._reset_stateful_cache()
    assert torch.equal(call(model, given), first)
    assert model.handle.report().full_steps == [0]
    model.disable_cache()
