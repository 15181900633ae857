"""Let a scheduler make more and finer steps than a pipeline requests, with the same number of full steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def finer_timesteps(finer: int) -> Callable[..., Any]:
    """Return a replacement of `scheduler.set_timesteps` that requests `finer` times as many steps."""

    def set_timesteps(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        passed = bound.arguments
        if passed.get("timesteps") is not None:
            raise ValueError(
                f"finer={finer} does not go with timesteps of your own: leave finer out, and pass all finer timesteps"
            )
        if passed.get("num_inference_steps") is not None:
            passed["num_inference_steps"] *= finer
        if passed.get("sigmas") is not None:
            passed["sigmas"] = finer_sigmas(passed["sigmas"], finer)
        return original(*bound.args, **bound.kwargs)

    return set_timesteps


def finer_sigmas(sigmas: Any, finer: int) -> Any:
    """Return `finer` times as many sigmas, (n,) to (finer · n,), of the same type and dtype.

    They are evenly spaced between those passed, and between the last one and 0.
    """
    coarse = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    ends = torch.cat([coarse, coarse.new_zeros(1)])
    shares = torch.arange(finer, dtype=torch.float64) / finer
    wanted = (ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * shares).flatten()
    if isinstance(sigmas, Tensor):
        return wanted.to(sigmas.device, sigmas.dtype)
    return wanted.tolist() if isinstance(sigmas, (list, tuple)) else wanted.numpy().astype(sigmas.dtype)
