"""Repeat a scheduler's updates, copy its state, and read its noise level, through its interface only.

Knows nothing of diffusers: a scheduler is an object whose `step` takes a `model_output` and a `sample`.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

OUTPUT, SAMPLE = "model_output", "sample"
Predicts = Literal["velocity", "noise", "clean", "v"]
NAMED: dict[str, Predicts] = {
    "epsilon": "noise", "sample": "clean", "v_prediction": "v", "flow_prediction": "velocity",
}  # fmt: skip


class Update(NamedTuple):
    """A call of `scheduler.step`: output and sample, (batch, …) of any float dtype, and other arguments by name."""

    output: Tensor
    sample: Tensor
    others: dict[str, Any]

    def apply(self, step: Callable[..., Any]) -> Any:
        """Make the update with `step`, and return its result."""
        return step(**{OUTPUT: self.output, SAMPLE: self.sample}, **self.others)

    def new_sample(self, step: Callable[..., Any]) -> Tensor:
        """Make the update with `step`, and return the new sample, (batch, …).

        Raises:
            TypeError: `step` returns no sample.
        """
        if (value := sample_of(self.apply(step))) is None:
            raise TypeError("scheduler.step returned no sample: return a tuple or an output object that begins with it")
        return value

    @property
    def takes_more_samples(self) -> bool:
        """Whether another argument, such as noise or an earlier prediction, has the sample's shape."""
        return any(isinstance(leaf, Tensor) and leaf.shape == self.sample.shape for leaf in tree_leaves(self.others))

    def random_states(self) -> list[Tensor]:
        """Return the states of the random number generators that the update may use, each a 1-d uint8 tensor."""
        states = [leaf.get_state() for leaf in tree_leaves(self.others) if isinstance(leaf, torch.Generator)]
        device = self.sample.device
        if device.type == "cpu":
            return [*states, torch.get_rng_state()]
        own = getattr(torch.get_device_module(device), "get_rng_state", None)
        return [*states, torch.get_rng_state(), *([own()] if own is not None else [])]


def update_of(step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Update | None:
    """Return the update that `step(*args, **kwargs)` makes; None if it does not update a floating-point sample."""
    function, owner = getattr(step, "__func__", step), getattr(step, "__self__", None)
    try:
        arguments = dict(_signature(function).bind(*([] if owner is None else [owner]), *args, **kwargs).arguments)
    except (TypeError, ValueError):
        return None
    if owner is not None:
        arguments.pop(next(iter(arguments)))
    for name, parameter in _signature(function).parameters.items():
        if name in arguments and parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
        elif name in arguments and parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            return None
    output, sample = arguments.pop(OUTPUT, None), arguments.pop(SAMPLE, None)
    if not isinstance(output, Tensor) or not isinstance(sample, Tensor) or not sample.is_floating_point():
        return None
    return Update(output, sample, arguments)


@lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def sample_of(result: Any) -> Tensor | None:
    """Return the sample (batch, …) in the tuple or output object of `scheduler.step`; None if there is none."""
    try:
        value = result[0]
    except (TypeError, KeyError, IndexError):
        return None
    return value if isinstance(value, Tensor) else None


def twin_of(scheduler: Any, of_state: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """Return an independent scheduler in the same state.

    It shares 1-d tensors, which are tables. `of_state` copies tensors with more dimensions: past outputs and samples.
    """
    twin = object.__new__(type(scheduler))
    vars(twin).update({name: _copied(value, of_state) for name, value in vars(scheduler).items() if name != "step"})
    return twin


def take_state(scheduler: Any, twin: Any) -> None:
    """Move the state of `twin` into `scheduler`; do not use `twin` again."""
    vars(scheduler).update(vars(twin))


def _copied(value: Any, of_state: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return of_state(value) if value.ndim > 1 else value
    if type(value) in (list, tuple):
        return type(value)(_copied(item, of_state) for item in value)
    if type(value) is dict:
        return {key: _copied(item, of_state) for key, item in value.items()}
    if isinstance(value, deque):
        return deque((_copied(item, of_state) for item in value), value.maxlen)
    return value


def predicts(scheduler: Any) -> Predicts | None:
    """Return the quantity that a model for this scheduler predicts; None if unknown.

    "velocity" is flow matching's noise minus clean sample; "v" is v-prediction with a diffusion's alphas and sigmas.
    """
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    if kind in NAMED:
        return NAMED[kind]
    has_sigmas = isinstance(getattr(scheduler, "sigmas", None), Tensor)
    return "velocity" if has_sigmas and not hasattr(scheduler, "alphas_cumprod") else None


def slope_at(scheduler: Any, timestep: Any) -> Tensor | None:
    """Return ∂v/∂x at a fixed prediction of the clean sample, before the update at `timestep`; a 0-d float tensor.

    Return None if the scheduler does not expose its noise level.
    """
    kind, level = predicts(scheduler), _level_at(scheduler, timestep)
    if kind is None or level is None:
        return None
    alpha, sigma = level
    if kind == "clean":
        return torch.zeros_like(sigma)
    return (alpha if kind == "v" else 1) / sigma


def _level_at(scheduler: Any, timestep: Any) -> tuple[Tensor, Tensor] | None:
    """Return `alpha` and `sigma`, 0-d: the present sample is `alpha` times the clean one plus `sigma` times noise."""
    sigmas, products = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    if isinstance(sigmas, Tensor) and sigmas.ndim == 1 and hasattr(scheduler, "step_index"):
        index = scheduler.step_index
        if index is None or not 0 <= index < len(sigmas):
            return None
        sigma = sigmas[index]
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
            return alpha, sigma
        if predicts(scheduler) == "velocity":
            return 1 - sigma, sigma
        return (1 + sigma**2) ** -0.5, sigma  # of an unscaled sample; "v" needs this `alpha`
    if isinstance(products, Tensor) and isinstance(timestep, (int, float, Tensor)):
        product = products[int(timestep)]
        return product**0.5, (1 - product) ** 0.5
    return None
