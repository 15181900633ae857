"""The chain of forwards on a module: relcache's replacements and the wrappers of other libraries.

Knows how accelerate, diffusers and torch.compile store the forward that they wrap. Imports none of them.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn

ABSENT = object()
MOST_INSPECTED = 256  # objects in an unknown wrapper
UNPICKLABLE = (
    "a model with relcache enabled cannot be pickled: call disable() on its handle first, or save its weights with "
    "save_pretrained"
)


class Slot(NamedTuple):
    """The dictionary and the key under which a forward is stored."""

    holder: dict[str, Any]
    key: str

    @property
    def value(self) -> Any:
        return self.holder[self.key]


class Replacement:
    """Replaces a method of one module by `call(original, *args, **kwargs)`, or by `original` once `call` is None.

    The module gets `bound`, a method of this object: torch.compile shares a graph between methods with the same code,
    but compiles any other callable object separately. With `on_copy` a deep copy of the module keeps `call`, and
    `on_copy(module, replacement)` reports it.
    """

    def __init__(
        self,
        module: Any,
        attribute: str,
        slot: Slot,
        call: Callable[..., Any],
        on_copy: Callable[[Any, Replacement], None] | None = None,
    ):
        self.before = slot.holder.get(slot.key, ABSENT)
        self.original = getattr(module, attribute) if self.before is ABSENT else self.before
        self.call: Callable[..., Any] | None = call
        self.on_copy, self.attribute = on_copy, attribute
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
        """Return the replacement for the copy of the module."""
        copied = Replacement.__new__(Replacement)
        vars(copied).update(vars(self))
        copied.call = self.call if self.on_copy is not None else None
        copied.original = copy.deepcopy(self.original, memo)
        copied.before = ABSENT if self.before is ABSENT else copied.original
        copied.bound = copied._bind()
        owner = getattr(copied.original, "__self__", None)
        if copied.on_copy is not None and copied.call is not None and owner is not None:
            copied.on_copy(owner, copied)
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(UNPICKLABLE)


def _with_self(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the signature of `original` after a first argument `self`.

    `inspect.signature` follows `__wrapped__` to it. Wrappers of the bound method would copy a `__signature__` of the
    replacement's own function, which has one argument too many.
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with suppress(TypeError, ValueError):  # `original` has no signature
        signature = inspect.signature(original)
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[own, *signature.parameters.values()]
        )
        method.__wrapped__ = original  # type: ignore[attr-defined]
    return method


def replacement_of(value: Any) -> Replacement | None:
    """Return the replacement that `value` is the method of; None if it is no such method."""
    owner = getattr(value, "__self__", None)
    return owner if isinstance(owner, Replacement) else None


def slots(module: Any, attribute: str = "forward") -> Iterator[Slot]:
    """Yield the slots of the forwards in the chain, outermost first; none if only the class has a forward.

    The last slot stores the class's own forward or an unknown wrapper.
    """
    slot: Slot | None = Slot(module.__dict__, attribute)
    while slot is not None and slot.key in slot.holder:
        yield slot
        slot = _inner_slot(module, slot.value)


def _inner_slot(module: Any, value: Any) -> Slot | None:
    """Return the slot of the forward that `value` calls; None if it is unknown."""
    replacement = replacement_of(value)
    if replacement is not None:
        return Slot(replacement.__dict__, "original")
    if not isinstance(value, functools.partial) or not value.args or value.args[0] is not module:
        return None
    if getattr(value.func, "__module__", "") == "accelerate.hooks":
        return Slot(module.__dict__, "_old_forward")
    reference = _reference(value)
    if reference is None:
        return None
    return Slot(vars(reference), "forward" if reference.original_forward is None else "original_forward")


def _reference(value: Any) -> Any:
    """Return the HookFunctionReference behind `value` if a hook of diffusers made it."""
    items = _contents(value.func) if isinstance(value, functools.partial) else []
    return next((item for item in items if hasattr(item, "original_forward") and hasattr(item, "pre_forward")), None)


def local_slot(module: Any, attribute: str) -> Slot:
    """Return the outermost slot in which the forward gets only the tokens of this process.

    Context parallelism splits and gathers the tokens in a hook. Outside that hook a forward takes all tokens.
    """
    local = Slot(module.__dict__, attribute)
    for slot in slots(module, attribute):
        reference = _reference(slot.value)
        hook = getattr(getattr(reference, "pre_forward", None), "__self__", None)
        if type(hook).__name__.startswith("ContextParallel"):
            local = Slot(vars(reference), "forward")
    return local


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` or `module.forward = torch.compile(module.forward)` is in effect."""
    return module._compiled_call_impl is not None or any(_is_compiled_function(slot.value) for slot in slots(module))


def _is_compiled_function(value: Any) -> bool:
    return hasattr(value, "_torchdynamo_orig_callable") and not getattr(value, "_torchdynamo_disable", False)


def reaches(value: Any, target: Any) -> bool:
    """Return whether an unknown wrapper keeps `target` in its closure, arguments, defaults or attributes.

    Functions made by torch.compile are not searched: compiled code cannot call a cache.
    """
    pending, inspected = [value], set[int]()
    while pending and len(inspected) < MOST_INSPECTED:
        item = pending.pop()
        if item is target:
            return True
        skipped = isinstance(item, (nn.Module, type, types.ModuleType)) or _is_compiled_function(item)
        if skipped or id(item) in inspected:
            continue
        inspected.add(id(item))
        if isinstance(item, functools.partial):
            pending += [item.func, *item.args, *item.keywords.values()]
        if isinstance(item, types.MethodType):
            pending += [item.__func__, item.__self__]
        pending += filter(callable, _contents(item))
    return False


def _contents(value: Any) -> list[Any]:
    """Return the objects in the closure, the defaults and the attributes of `value`."""
    contents = []
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # the cell is empty
                contents.append(cell.cell_contents)
        contents += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    attributes = getattr(value, "__dict__", None)
    return contents + (list(attributes.values()) if isinstance(attributes, dict) else [])
