"""Swap attributes of objects and put them back exactly.

Only instances change, never classes, so a second model of the same class is not affected. A copy of a patched module
is unpatched.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from relcache.engine.forwards import ABSENT, Replacement, Slot, local_slot, reaches, replacement_of, slots


def is_swapped(module: Any, attribute: str, call: Callable[..., Any]) -> bool:
    """Return whether `Patch.swap` put `call` on `module.attribute`, or on that of the object it was copied from."""
    replacement = replacement_of(vars(module).get(attribute))
    return replacement is not None and replacement.call == call


class Patch:
    """Attributes swapped on modules and other objects, and how to put them back.

    Keeps no module alive: a module owns its replacements, and the patch refers to both weakly.
    """

    def __init__(self) -> None:
        self._swapped: list[tuple[weakref.ref[Any], weakref.ref[Replacement]]] = []
        # by module and attribute: the newest replacement, and the class's own method that it replaces
        self._outermost: dict[tuple[int, str], tuple[weakref.ref[Replacement], Any]] = {}

    def swap(self, module: Any, attribute: str, call: Callable[..., Any], in_copies: bool = False) -> None:
        """Make `module.attribute(...)` call `call(original, ...)`, with `in_copies` on deep copies, too."""
        slot = local_slot(module, attribute)
        replacement = Replacement(module, attribute, slot, call, self._add if in_copies else None)
        slot.holder[slot.key] = replacement.bound
        self._add(module, replacement)
        _, own = self._outermost.get((id(module), attribute), (None, None))
        own = getattr(type(module), attribute, None) if replacement.before is ABSENT else own
        self._outermost[id(module), attribute] = (weakref.ref(replacement), own)

    def _add(self, module: Any, replacement: Replacement) -> None:
        """Record a replacement, and forget those whose modules are gone."""
        self._swapped = [pair for pair in self._swapped if pair[0]() is not None]
        self._swapped.append((weakref.ref(module), weakref.ref(replacement)))

    def swap_call(self, module: nn.Module, call: Callable[..., Any]) -> None:
        """Make a call of `module` call `call(original, ...)`, outside the code that `module.compile()` compiled."""
        self.swap(module, _called_attribute(module), call)

    def acts_on(self, module: nn.Module, attribute: str = "") -> bool:
        """Return whether `attribute` of `module` still reaches its newest replacement, also behind other code's hooks.

        It does not where other code put back an earlier forward, compiled the replacement, or changed the method of
        the class behind it. The default attribute is the one that `swap_call` swaps.
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
        """Put back the original objects; a second call does nothing.

        A replacement is also removed from behind hooks of accelerate and diffusers. An unknown wrapper around it stays
        in place, and the replacement only calls the original.
        """
        for module, replacement in self._present():
            slot, innermost = _remove(module, replacement)
            if slot is not None and slot.holder is module.__dict__ and replacement.before is ABSENT:
                replacement.original = getattr(module, replacement.attribute)  # for calls in progress
            elif slot is None and reaches(innermost, replacement.bound):
                warnings.warn(
                    f"{type(module).__name__}.{replacement.attribute} was replaced by other code while relcache was "
                    "enabled; that replacement is left in place, and relcache no longer acts behind it",
                    stacklevel=3,
                )
        self._swapped.clear()
        self._outermost.clear()

    def suspend(self) -> Callable[[], None]:
        """Put back the original objects, and return a function that puts the same replacements in again."""
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
    """Return the slot that stores `replacement`, None if no known slot does, and the innermost forward inspected."""
    value = None
    for slot in slots(module, replacement.attribute):
        value = slot.value
        if replacement_of(value) is replacement:  # a copied module has another method of it than `bound`
            return slot, value
    return None, value


def _remove(module: Any, replacement: Replacement) -> tuple[Slot | None, Any]:
    """Stop `replacement`, and put back what its slot stored before; return the same as `_find`."""
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
