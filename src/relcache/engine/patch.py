"""Swap attributes of objects and restore them exactly.

Only instances change, never classes, so a second model of the same class is not affected. A copy of a patched module
is unpatched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from relcache.engine.forwards import ABSENT, Replacement, Slot, local_slot, reaches, replacement_of, slots
from relcache.warning import warn


def is_swapped(module: Any, attribute: str, call: Callable[..., Any]) -> bool:
    """Return whether `Patch.swap` put `call` on `module.attribute`, or on the original if `module` is a copy."""
    replacement = replacement_of(vars(module).get(attribute))
    return replacement is not None and replacement.call == call


class Patch:
    """The attributes swapped on modules and other objects, to be restored later.

    It keeps no module alive: a module owns its replacements, and the patch refers to both weakly.
    """

    def __init__(self) -> None:
        self._swapped: list[tuple[weakref.ref[Any], weakref.ref[Replacement]]] = []
        # by module and attribute: the newest replacement, and the class's own method that it replaces
        self._outermost: dict[tuple[int, str], tuple[weakref.ref[Replacement], Any]] = {}

    def swap(self, module: Any, attribute: str, call: Callable[..., Any], in_copies: bool = False) -> None:
        """Make `module.attribute(...)` call `call(original, ...)`; with `in_copies` also on deep copies."""
        slot = local_slot(module, attribute)
        replacement = Replacement(module, attribute, slot, call, self._add if in_copies else None)
        slot.holder[slot.key] = replacement.bound
        self._add(module, replacement)
        _, own = self._outermost.get((id(module), attribute), (None, None))
        own = getattr(type(module), attribute, None) if replacement.before is ABSENT else own
        self._outermost[id(module), attribute] = (weakref.ref(replacement), own)

    def _add(self, module: Any, replacement: Replacement) -> None:
        """Record a replacement, and drop those of deleted modules."""
        self._swapped = [pair for pair in self._swapped if pair[0]() is not None]
        self._swapped.append((weakref.ref(module), weakref.ref(replacement)))

    def swap_call(self, module: nn.Module, call: Callable[..., Any]) -> None:
        """Make a call of `module` call `call(original, ...)`, outside its compiled code."""
        self.swap(module, _called_attribute(module), call)

    def acts_on(self, module: nn.Module, attribute: str = "") -> bool:
        """Return whether `attribute` of `module` still calls its newest replacement, directly or through other hooks.

        It does not if other code restored an earlier forward, compiled the replacement, or changed the class's method
        behind it. The default attribute is the one that `swap_call` swaps.
        """
        attribute = attribute or _called_attribute(module)
        reference, own = self._outermost.get((id(module), attribute), (None, None))
        replacement = reference() if reference is not None else None
        if replacement is None or (own is not None and getattr(type(module), attribute, None) is not own):
            return False
        if module.__dict__.get(attribute) is replacement.bound:  # no other code wraps it
            return True
        slot, innermost = _find(module, replacement)
        return slot is not None or reaches(innermost, replacement.bound)

    def restore(self) -> None:
        """Restore the original objects; a second call does nothing.

        A replacement inside hooks of accelerate and diffusers is removed, too. An unknown wrapper around it stays, and
        the replacement then only calls the original.
        """
        for module, replacement in self._present():
            slot, innermost = _remove(module, replacement)
            if slot is not None and slot.holder is module.__dict__ and replacement.before is ABSENT:
                replacement.original = getattr(module, replacement.attribute)  # for calls in progress
            elif slot is None and reaches(innermost, replacement.bound):
                warn(
                    f"{type(module).__name__}.{replacement.attribute} was replaced by other code while relcache was "
                    "enabled; that replacement is left in place, and relcache no longer acts behind it"
                )
        self._swapped.clear()
        self._outermost.clear()

    def suspend(self) -> Callable[[], None]:
        """Restore the original objects, and return a function that puts the same replacements back."""
        removed: list[tuple[Replacement, Callable[..., Any] | None, Slot | None]] = []
        for module, replacement in self._present():
            call = replacement.call
            slot, _ = _remove(module, replacement)
            removed.append((replacement, call, slot))

        def resume() -> None:
            for replacement, call, slot in reversed(removed):
                replacement.call = call
                if slot is not None:
                    slot.holder[slot.key] = replacement.bound

        return resume

    def _present(self) -> Iterator[tuple[Any, Replacement]]:
        """Yield the modules and replacements that still exist, newest first."""
        for module_reference, reference in reversed(self._swapped):
            module, replacement = module_reference(), reference()
            if module is not None and replacement is not None:
                yield module, replacement


def _called_attribute(module: nn.Module) -> str:
    """Return the attribute that torch calls when `module` is called."""
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"


def _find(module: Any, replacement: Replacement) -> tuple[Slot | None, Any]:
    """Return the slot that stores `replacement`, or None, and the innermost forward inspected."""
    value = None
    for slot in slots(module, replacement.attribute):
        value = slot.value
        if replacement_of(value) is replacement:  # compared by owner: in a copied module the method is not `bound`
            return slot, value
    return None, value


def _remove(module: Any, replacement: Replacement) -> tuple[Slot | None, Any]:
    """Stop `replacement`, and restore the earlier value of its slot; return the same as `_find`."""
    replacement.call = None
    slot, innermost = _find(module, replacement)
    if slot is None:
        return None, innermost
    outermost = slot.holder is module.__dict__ and slot.key == replacement.attribute
    before = replacement.before if outermost else replacement.original
    if before is ABSENT:
        del slot.holder[slot.key]
    else:
        slot.holder[slot.key] = before
    return slot, innermost
