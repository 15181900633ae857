"""Swap attributes of module instances and put them back exactly.

Knows nothing of caching. Only instances are touched, never classes, so that a second model of the same class is not
affected. A copy of a patched module is unpatched.
"""

from __future__ import annotations

import copy
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from relcache.engine.forwards import Slot, Standing, reaches, slot_within_ranks, slots, standing

_ABSENT = object()
UNPICKLABLE = (
    "a model with relcache enabled cannot be pickled: call disable() on its handle first, or save its weights with "
    "save_pretrained"
)


class Replacement(Standing):
    """Stands in for a bound method of one module: `call(original, *args, **kwargs)`, or `original` once retired.

    What is put on the module is `bound`, a method of this object. torch.compile takes two methods for the same whose
    functions have the same code, so that blocks of one kind share a graph; of any other object it takes each by itself.
    """

    def __init__(
        self, module: Any, attribute: str, slot: Slot, call: Callable[..., Any] | None, in_copies: bool = False
    ):
        self.before = slot.holder.get(slot.key, _ABSENT)
        self.original = getattr(module, attribute) if self.before is _ABSENT else self.before
        self.call, self.in_copies = call, in_copies
        self.on_copy: Callable[[Any, Replacement], None] | None = None
        self.attribute = attribute
        self.bound = self._bind()

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        if self.call is None:
            return self.original(*args, **kwargs)
        return self.call(self.original, *args, **kwargs)

    def _bind(self) -> types.MethodType:
        function = types.FunctionType(Replacement._pass.__code__, globals(), self.attribute)
        function.__wrapped__ = _with_self(self.original)  # type: ignore[attr-defined]
        return types.MethodType(function, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Replacement:
        """One that is retired, unless it goes on in copies, with what was there before, bound to the copy of the module
        that is being made."""
        copied = copy.copy(self)
        copied.call = self.call if self.in_copies else None
        copied.original = copy.deepcopy(self.original, memo)
        copied.before = _ABSENT if self.before is _ABSENT else copied.original
        copied.bound = copied._bind()
        owner = getattr(copied.original, "__self__", None)
        if copied.call is not None and copied.on_copy is not None and owner is not None:
            copied.on_copy(owner, copied)
        return copied

    def __copy__(self) -> Replacement:
        copied = Replacement.__new__(Replacement)
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(UNPICKLABLE)


def _with_self(original: Callable[..., Any]) -> Callable[..., Any]:
    """What has the signature of `original` and takes an object before it, as the function of a method does.

    The signature is found by following `__wrapped__`. On the function itself it would be copied by whoever wraps the
    method in a function or a partial, and be one argument too long there.
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with suppress(TypeError, ValueError):  # what has no signature
        signature = inspect.signature(original)
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[own, *signature.parameters.values()]
        )
        method.__wrapped__ = original  # type: ignore[attr-defined]
    return method


def is_replaced(value: Any) -> bool:
    """Whether `value`, found on a module, stands in for something."""
    return standing(value) is not None


def goes_to(module: Any, attribute: str, call: Callable[..., Any]) -> bool:
    """Whether `module.attribute` is what `Patch.swap` put there for `call`, here or on what `module` is a copy of."""
    replacement = getattr(vars(module).get(attribute), "__self__", None)
    return isinstance(replacement, Replacement) and replacement.call == call


class Patch:
    """Attributes swapped on module instances, and on other objects, and the way back.

    Keeps no module alive: a replacement lives on its module, and the patch knows both weakly.
    """

    def __init__(self) -> None:
        self._swapped: list[tuple[weakref.ref[Any], weakref.ref[Replacement]]] = []
        # by module and attribute the replacement that was put there last, and the class's own that is behind it
        self._outermost: dict[tuple[int, str], tuple[weakref.ref[Replacement], Any]] = {}

    def swap(self, module: Any, attribute: str, call: Callable[..., Any], in_copies: bool = False) -> None:
        """Let `module.attribute(...)` become `call(original, ...)`, and with `in_copies` also that of deep copies."""
        slot = slot_within_ranks(module, attribute)
        replacement = Replacement(module, attribute, slot, call, in_copies)
        slot.holder[slot.key] = replacement.bound
        if in_copies:
            replacement.on_copy = self._add
        self._add(module, replacement)
        _, own = self._outermost.get((id(module), attribute), (None, None))
        own = getattr(type(module), attribute, None) if replacement.before is _ABSENT else own
        self._outermost[id(module), attribute] = (weakref.ref(replacement), own)

    def _add(self, module: Any, replacement: Replacement) -> None:
        """Know of a replacement that stands on `module`, and forget those whose modules are gone."""
        self._swapped = [pair for pair in self._swapped if pair[0]() is not None]
        self._swapped.append((weakref.ref(module), weakref.ref(replacement)))

    def swap_call(self, module: nn.Module, call: Callable[..., Any]) -> None:
        """Let a call of `module` become `call(original, ...)`, outside of what `module.compile()` has compiled."""
        self.swap(module, _called(module), call)

    def acts_on(self, module: nn.Module, attribute: str = "") -> bool:
        """Whether `attribute` of `module`, by default what `swap_call` swaps, still comes to what was put there last.

        It does behind other code's hooks. It does not once they have put back a forward from before, where
        `module.compile()`, or `torch.compile(module.forward)`, has taken the replacement into compiled code, or where
        the class has another method than the one that is behind it.
        """
        attribute = attribute or _called(module)
        reference, own = self._outermost.get((id(module), attribute), (None, None))
        replacement = reference() if reference is not None else None
        if replacement is None or (own is not None and getattr(type(module), attribute, None) is not own):
            return False
        if module.__dict__.get(replacement.attribute) is replacement.bound:
            return True
        values = [slot.value for slot in slots(module, replacement.attribute)]
        if any(value is replacement.bound for value in values):
            return True
        return bool(values) and reaches(values[-1], replacement.bound)

    def restore(self) -> None:
        """Put back the very objects that were there. A second call does nothing.

        A replacement that accelerate or diffusers has wrapped is taken out from behind their hooks. Where a wrapper of
        another kind holds it, that stays, and ours passes every call through.
        """
        for module, replacement in self._present():
            replacement.call = None
            slot, value = _find(module, replacement)
            if slot is not None:
                _take_out(module, replacement, slot)
                if replacement.before is _ABSENT and slot.holder is module.__dict__:  # for calls under way
                    replacement.original = getattr(module, replacement.attribute)
            elif reaches(value, replacement.bound):
                warnings.warn(
                    f"{type(module).__name__}.{replacement.attribute} was replaced by other code while relcache was "
                    "enabled; that replacement is left in place, and relcache no longer acts behind it",
                    stacklevel=3,
                )
        self._swapped.clear()
        self._outermost.clear()

    def suspend(self) -> Callable[[], None]:
        """Take everything away as `restore` does, but for a while: the function returned puts the very objects back."""
        taken: list[tuple[Replacement, Callable[..., Any] | None, Slot | None]] = []
        for module, replacement in self._present():
            slot, _ = _find(module, replacement)
            taken.append((replacement, replacement.call, slot))
            replacement.call = None
            if slot is not None:
                _take_out(module, replacement, slot)

        def resume() -> None:
            for replacement, call, slot in reversed(taken):
                replacement.call = call
                if slot is not None:
                    slot.holder[slot.key] = replacement.bound

        return resume

    def _present(self) -> Iterator[tuple[Any, Replacement]]:
        """What is swapped, the last first; others may have put something else in its place, and dropped it."""
        for module_reference, reference in reversed(self._swapped):
            module, replacement = module_reference(), reference()
            if module is not None and replacement is not None:
                yield module, replacement


def _called(module: nn.Module) -> str:
    """The attribute that torch calls when `module` is called."""
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"


def _find(module: Any, replacement: Replacement) -> tuple[Slot | None, Any]:
    """The slot that holds `replacement`, None if none that is known does; the innermost forward that was looked at."""
    value = None
    for slot in slots(module, replacement.attribute):
        value = slot.value
        if getattr(value, "__self__", None) is replacement:  # on a copy it is another method of the same
            return slot, value
    return None, value


def _take_out(module: Any, replacement: Replacement, slot: Slot) -> None:
    """Let `slot` hold what it held before `replacement`."""
    if slot.holder is not module.__dict__ or slot.key != replacement.attribute:
        slot.holder[slot.key] = replacement.original
    elif replacement.before is _ABSENT:
        del slot.holder[slot.key]
    else:
        slot.holder[slot.key] = replacement.before
