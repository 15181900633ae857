"""Check whether processes that share a model may each decide by their own features.

An error-driven schedule decides by the features of its own process. Processes may share a picture, or the weights
inside skipped modules. If they then decide differently, one skips while the other waits in a collective, forever.
Sharing that is visible on the model is refused. A model's own code may divide a sequence invisibly, so there is only a
warning: processes that each make their own pictures look the same, and may continue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import nn

from relcache.engine.wrappers import is_of_class

SHARDED = ("FSDPModule", "FullyShardedDataParallel")
ALTERNATIVES = (
    "use a schedule that needs no error signal, Interval or Plan, as FORA, TaylorSeer and RFE do; or let one process "
    "make each picture"
)
MAY_SHARE = (
    "relcache: torch.distributed runs with {} processes, and this schedule decides by the features of its own process. "
    "That is right where each makes pictures of its own. If they share one picture (sequence parallelism), they may "
    "decide differently and wait for each other forever: " + ALTERNATIVES
)


def process_count() -> int:
    """Return the number of processes in torch.distributed; 1 if it is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_ranks(model: nn.Module, skipped: Iterable[nn.Module], compiled: bool) -> None:
    """Check that the processes of `model` may decide by themselves.

    Args:
        skipped: modules that a cached step skips.
        compiled: whether they are inside compiled code. The model is then run up to the first of them.

    Raises:
        ValueError: the processes could wait for each other.
    """
    name = type(model).__name__
    if _divides_the_sequence(model):
        raise ValueError(
            f"{name} runs under context parallelism, where each process has some of the tokens and would decide by "
            f"them alone: {ALTERNATIVES}"
        )
    outers = [model] if compiled else skipped
    if any(is_of_class(module, SHARDED) for outer in outers for module in outer.modules() if module is not outer):
        raise ValueError(
            f"{name} has FSDP-sharded modules inside what a cached step skips, where processes that decide differently "
            "would wait for each other: shard whole blocks, in the units' own size or coarser, and do not compile "
            f"them; or {ALTERNATIVES}"
        )


def _divides_the_sequence(model: nn.Module) -> bool:
    """Return whether diffusers' context parallelism is on, by the model's method or applied by hand."""
    config = model.__dict__.get("_parallel_config")
    if getattr(config, "context_parallel_config", None) is not None:
        return True
    registries: Iterable[Any] = (module.__dict__.get("_diffusers_hook") for module in model.modules())
    return any(hook.startswith("cp_") for registry in registries if registry is not None for hook in registry.hooks)
