"""Run modules until one inside them is called, and close the hooks of those around it. Knows nothing of caching.

Code that wraps a forward (accelerate, diffusers' offloading) does something before it and something after it, and is
not made for a forward that is left by an exception: weights that were brought would stay. So a forward that is left
returns a stand-in to its hooks, and the exception goes on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.engine.forwards import slots, standing

See = Callable[[tuple[Any, ...], dict[str, Any]], None]
StandIn = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]


class _Reached(Exception):
    """The module was called; what comes after it is not wanted."""


def run_until(modules: Sequence[nn.Module], run: Callable[[], Any], see: See, stand_in: StandIn | None = None) -> None:
    """Call `run`, which runs the forward of the first of `modules`, until the last is called; `see` gets its arguments.

    Args:
        modules: each of which lies in the one before.
        stand_in: from the first module's arguments, what its hooks take for its output; by default the first tensor.
    """
    *around, last = modules
    reached = False

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal reached
        reached = True
        see(args, kwargs)
        raise _Reached

    def go_on(module: nn.Module, args: Any, output: Any) -> None:
        if reached:
            raise _Reached

    handles = [last.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)]
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for place, module in enumerate(around):
        held = list(slots(module))
        if all(standing(slot.value) is not None for slot in held[:-1]):
            continue  # nobody but ours is around its forward
        holder, key = held[-1]
        changed.append((holder, key, holder[key]))
        holder[key] = _closing(holder[key], stand_in if place == 0 and stand_in is not None else _first_tensor)
        if place:
            handles.append(module.register_forward_hook(go_on))
    try:
        run()
    except _Reached:
        pass
    finally:
        for holder, key, value in changed:
            holder[key] = value
        for handle in handles:
            handle.remove()


def _closing(forward: Callable[..., Any], stand_in: StandIn) -> Callable[..., Any]:
    """`forward`, which returns a stand-in where it is left."""

    def close(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except _Reached:
            return stand_in(args, kwargs)

    return close


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return next((leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)), None)
