"""Where a module's forward is held once others have wrapped it: accelerate, diffusers' hooks, torch.compile.

Knows how these libraries keep what they wrapped, and imports none of them. Of caching nothing.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

MOST_LOOKED_AT = 256  # objects of an unknown wrapper


class Slot(NamedTuple):
    """One place that holds a forward: a dictionary and its key."""

    holder: dict[str, Any]
    key: str

    @property
    def value(self) -> Any:
        return self.holder[self.key]


class Standing:
    """What stands in for a forward and keeps the one before as `original`; made by `patch`."""

    original: Any


def standing(value: Any) -> Standing | None:
    """What `value`, found on a module, belongs to, if that stands in for something."""
    owner = getattr(value, "__self__", None)
    return owner if isinstance(owner, Standing) else None


def slots(module: Any, attribute: str = "forward") -> Iterator[Slot]:
    """Where the forwards that call one another are held, outermost first; none if the class's own is called.

    The value of the last slot is the class's own forward, or of a kind that is not known here.
    """
    slot: Slot | None = Slot(module.__dict__, attribute)
    while slot is not None and slot.key in slot.holder:
        yield slot
        slot = _inner(module, slot.value)


def _inner(module: Any, value: Any) -> Slot | None:
    """The slot of what `value` calls."""
    ours = standing(value)
    if ours is not None:
        return Slot(ours.__dict__, "original")
    if not isinstance(value, functools.partial) or not value.args or value.args[0] is not module:
        return None
    if getattr(value.func, "__module__", "") == "accelerate.hooks":
        return Slot(module.__dict__, "_old_forward")
    reference = _reference(value)
    if reference is None:
        return None
    return Slot(vars(reference), "forward" if reference.original_forward is None else "original_forward")


def _reference(value: functools.partial[Any]) -> Any:
    """The HookFunctionReference of a forward that a hook of diffusers has wrapped."""
    held = (each for each in _closure(value.func) if hasattr(each, "original_forward") and hasattr(each, "pre_forward"))
    return next(held, None)


def slot_within_ranks(module: Any, attribute: str) -> Slot:
    """The outermost slot in which features are those of this process alone.

    Context parallelism divides what a module is given by a hook on it: whatever is outside of that hook sees all tokens
    and returns some.
    """
    place = Slot(module.__dict__, attribute)
    for slot in slots(module, attribute):
        reference = _reference(slot.value) if isinstance(slot.value, functools.partial) else None
        hook = getattr(getattr(reference, "pre_forward", None), "__self__", None)
        if type(hook).__name__.startswith("ContextParallel"):
            place = Slot(vars(reference), "forward")
    return place


def is_compiled(value: Any) -> bool:
    """Whether `value` was made by torch.compile from a function."""
    return hasattr(value, "_torchdynamo_orig_callable") and not getattr(value, "_torchdynamo_disable", False)


def has_compiled_forward(module: nn.Module) -> bool:
    """Whether `module.forward = torch.compile(module.forward)` is in effect."""
    return "forward" in module.__dict__ and any(is_compiled(slot.value) for slot in slots(module))


def reaches(value: Any, target: Any) -> bool:
    """Whether a wrapper of an unknown kind holds `target`: in its closure, its arguments, defaults or attributes.

    What torch.compile has made counts as not holding it: nothing in there can ask a cache.
    """
    found, seen = [value], set[int]()
    while found and len(seen) < MOST_LOOKED_AT:
        item = found.pop()
        if item is target:
            return True
        if id(item) in seen or isinstance(item, (nn.Module, type, types.ModuleType)) or is_compiled(item):
            continue
        seen.add(id(item))
        if isinstance(item, functools.partial):
            found += [item.func, *item.args, *item.keywords.values()]
        if isinstance(item, types.MethodType):
            found += [item.__func__, item.__self__]
        found += [held for held in (*_closure(item), *_defaults(item), *_attributes(item)) if callable(held)]
    return False


def _closure(value: Any) -> list[Any]:
    cells = getattr(value, "__closure__", None) or ()
    found = []
    for cell in cells if isinstance(cells, tuple) else ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return found


def _defaults(value: Any) -> list[Any]:
    if not isinstance(value, types.FunctionType):
        return []
    return [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]


def _attributes(value: Any) -> list[Any]:
    held = getattr(value, "__dict__", None)
    return list(held.values()) if isinstance(held, dict) else []
