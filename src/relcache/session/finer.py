"""Lets a scheduler make more and finer steps than a pipeline asks for, at the same number of full ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def finer_timesteps(finer: int) -> Callable[..., Any]:
    """Return a replacement of `scheduler.set_timesteps` that asks for `finer` times as many steps."""

    def set_timesteps(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        passed = bound.arguments
        if passed.get("timesteps") is not None:
            raise ValueError(
                f"finer={finer} does not go with timesteps of your own: pass all of the finer ones, without finer"
            )
        if passed.get("num_inference_steps") is not None:
            passed["num_inference_steps"] *= finer
        if passed.get("sigmas") is not None:
            passed["sigmas"] = between(passed["sigmas"], finer)
        return original(*bound.args, **bound.kwargs)

    return set_timesteps


def between(sigmas: Any, finer: int) -> Any:
    """Return `finer` times as many sigmas, (n,) to (finer · n,), of the same type and dtype.

    They are evenly spaced between those passed, and from the last one to 0.
    """
    coarse = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    ends = torch.cat([coarse, coarse.new_zeros(1)])
    shares = torch.arange(finer, dtype=torch.float64) / finer
    wanted = (ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * shares).flatten()
    if isinstance(sigmas, Tensor):
        return wanted.to(sigmas.device, sigmas.dtype)
    return wanted.tolist() if isinstance(sigmas, (list, tuple)) else wanted.numpy().astype(sigmas.dtype)
