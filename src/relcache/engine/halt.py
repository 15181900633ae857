"""Run a module up to another one inside it, and let the hooks around them finish.

Wrappers of a forward, such as those of accelerate and diffusers' offloading, act before it and after it. An exception
would skip the second part, and weights would stay on the device. So an interrupted forward returns a substitute for its
output to its wrappers, and the exception is raised again outside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.engine.forwards import Slot, replacement_of, slots

Substitute = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]


class _Reached(Exception):
    """The last module was called: stop."""


def run_until(
    modules: Sequence[nn.Module],
    run: Callable[[], Any],
    receive: Callable[[tuple[Any, ...], dict[str, Any]], None],
    substitute: Substitute | None = None,
) -> None:
    """Call `run`, which runs the first of `modules`, until it calls the last; pass its arguments to `receive`.

    Args:
        modules: each is inside the one before.
        substitute: makes a substitute for the first module's output from its arguments; by default their first tensor.
    """
    *around, last = modules
    reached = False

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal reached
        reached = True
        receive(args, kwargs)
        raise _Reached

    def stop_again(module: nn.Module, args: Any, output: Any) -> None:
        if reached:
            raise _Reached

    with ExitStack() as undo:
        undo.callback(last.register_forward_pre_hook(stop, with_kwargs=True, prepend=True).remove)
        for depth, module in enumerate(around):
            chain = list(slots(module))
            is_wrapped = any(replacement_of(slot.value) is None for slot in chain[:-1])
            if not is_wrapped and not (depth and module._forward_hooks):
                continue  # no other code acts after its forward
            inner = chain[-1] if chain else _class_forward(module, undo)
            undo.callback(inner.holder.__setitem__, inner.key, inner.value)
            make = (substitute if depth == 0 else None) or _first_tensor
            inner.holder[inner.key] = _with_substitute(inner.value, make)
            if depth:
                undo.callback(module.register_forward_hook(stop_again).remove)
        with suppress(_Reached):
            run()


def _class_forward(module: nn.Module, undo: ExitStack) -> Slot:
    """Put the forward of a module's class on the module itself, until `undo`, and return where it is."""
    undo.callback(module.__dict__.pop, "forward")
    module.__dict__["forward"] = module.forward
    return Slot(module.__dict__, "forward")


def _with_substitute(forward: Callable[..., Any], substitute: Substitute) -> Callable[..., Any]:
    """Return `forward`, changed to return a substitute where it is interrupted."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except _Reached:
            return substitute(args, kwargs)

    return call


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return next((leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)), None)
