"""More steps than a pipeline asks its scheduler for: finer steps at the same number of full ones.

Knows schedulers by their `set_timesteps` alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def finer_timesteps(finer: int) -> Callable[..., Any]:
    """A stand-in for `scheduler.set_timesteps` that asks for `finer` times as many steps."""

    def set_timesteps(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        given = bound.arguments
        if given.get("timesteps") is not None:
            raise ValueError(
                f"finer={finer} does not go with timesteps of one's own: give as many of them as there are to be"
            )
        if given.get("num_inference_steps") is not None:
            given["num_inference_steps"] *= finer
        if given.get("sigmas") is not None:
            given["sigmas"] = between(given["sigmas"], finer)
        return original(*bound.args, **bound.kwargs)

    return set_timesteps


def between(sigmas: Any, finer: int) -> Any:
    """`finer` times as many sigmas, evenly between those given, and after the last one on the way to 0."""
    given = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    ends = torch.cat([given, given.new_zeros(1)])
    shares = torch.arange(finer, dtype=torch.float64) / finer
    wanted = (ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * shares).flatten()
    if isinstance(sigmas, Tensor):
        return wanted.to(sigmas.device, sigmas.dtype)
    return wanted.tolist() if isinstance(sigmas, (list, tuple)) else wanted.numpy().astype(sigmas.dtype)
