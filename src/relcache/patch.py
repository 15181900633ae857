"""Swap attributes of module instances and put them back exactly.

Knows nothing of caching. Only instances are touched, never classes, so that a second model of the same class is not
affected. A copy of a patched module is unpatched.
"""

from __future__ import annotations

import copy
import inspect
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

_ABSENT = object()
UNPICKLABLE = (
    "a model with relcache enabled cannot be pickled: call disable() on its handle first, or save its weights with "
    "save_pretrained"
)


class Replacement:
    """Stands in for a bound method of one module: `call(original, *args, **kwargs)`, or `original` once retired.

    What is put on the module is `bound`, a method of this object. torch.compile takes two methods for the same whose
    functions have the same code, so that blocks of one kind share a graph; of any other object it takes each by itself.
    """

    def __init__(self, module: Any, attribute: str, call: Callable[..., Any] | None):
        self.original = getattr(module, attribute)
        self.call = call
        self.attribute = attribute
        self.bound = self._bind()

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        if self.call is None:
            return self.original(*args, **kwargs)
        return self.call(self.original, *args, **kwargs)

    def _bind(self) -> types.MethodType:
        function = types.FunctionType(Replacement._pass.__code__, globals(), self.attribute)
        function.__wrapped__ = self.original  # type: ignore[attr-defined]
        with suppress(TypeError, ValueError):  # what has no signature
            signature = inspect.signature(self.original)
            own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
            function.__signature__ = signature.replace(  # type: ignore[attr-defined]
                parameters=[own, *signature.parameters.values()]
            )
        return types.MethodType(function, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Replacement:
        """One that is retired, with what was there before, bound to the copy of the module that is being made."""
        copied = copy.copy(self)
        copied.call, copied.original = None, copy.deepcopy(self.original, memo)
        copied.bound = copied._bind()
        return copied

    def __copy__(self) -> Replacement:
        copied = Replacement.__new__(Replacement)
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(UNPICKLABLE)


def is_replaced(value: Any) -> bool:
    """Whether `value`, found on a module, stands in for something."""
    return isinstance(getattr(value, "__self__", None), Replacement)


def is_compiled_anew(module: nn.Module) -> bool:
    """Whether `module.compile()` was called since its call was swapped: what it compiled holds the replacement."""
    compiled = module._compiled_call_impl
    swapped = is_replaced(module.__dict__.get("forward")) or is_replaced(compiled)
    return swapped and compiled is not None and not is_replaced(compiled)


class Hook:
    """A forward hook that a copy of its module does not inherit."""

    def __init__(self, call: Callable[..., None] | None):
        self.call = call

    def __call__(self, *args: Any) -> None:
        if self.call is not None:
            self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(None)

    def __reduce__(self) -> Any:
        raise TypeError(UNPICKLABLE)


class Patch:
    """Attributes swapped and hooks registered on module instances, and the way back."""

    def __init__(self) -> None:
        self._swapped: list[tuple[Any, Replacement, Any]] = []
        self._hooks: list[RemovableHandle] = []

    def watch(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        """Call `before(module, args, kwargs)` and `after(module, args, kwargs, output)` around `module`'s forward.

        Where forward raises an Exception, `after` is called with the output None. These are torch's own hooks: they
        hold whatever others put in the place of `module.forward`, as offloading does after each request. Of a module
        that is compiled the compiled call is swapped instead, as hooks would be compiled with it.
        """
        if module._compiled_call_impl is not None:

            def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                before(module, args, kwargs)
                try:
                    output = original(*args, **kwargs)
                except Exception:
                    after(module, args, kwargs, None)
                    raise
                after(module, args, kwargs, output)
                return output

            self.swap(module, "_compiled_call_impl", call)
            return
        self._hooks.append(module.register_forward_pre_hook(Hook(before), with_kwargs=True))
        self._hooks.append(module.register_forward_hook(Hook(after), with_kwargs=True, always_call=True))

    def swap(self, module: Any, attribute: str, call: Callable[..., Any]) -> None:
        """Let `module.attribute(...)` become `call(original, ...)`."""
        before = module.__dict__.get(attribute, _ABSENT)
        replacement = Replacement(module, attribute, call)
        module.__dict__[attribute] = replacement.bound
        self._swapped.append((module, replacement, before))

    def swap_call(self, module: nn.Module, call: Callable[..., Any]) -> None:
        """Let a call of `module` become `call(original, ...)`, outside of what `module.compile()` has compiled."""
        self.swap(module, "forward" if module._compiled_call_impl is None else "_compiled_call_impl", call)

    def restore(self) -> None:
        """Put back the very objects that were there. A second call does nothing.

        Where someone else has since wrapped a replacement, theirs stays, and ours passes every call through.
        """
        while self._hooks:
            self._hooks.pop().remove()
        while self._swapped:
            module, replacement, before = self._swapped.pop()
            replacement.call = None
            if module.__dict__.get(replacement.attribute) is not replacement.bound:
                warnings.warn(
                    f"{type(module).__name__}.{replacement.attribute} was replaced by other code while relcache was "
                    "enabled; that replacement is left in place, and relcache no longer acts behind it",
                    stacklevel=3,
                )
            elif before is _ABSENT:
                del module.__dict__[replacement.attribute]
            else:
                module.__dict__[replacement.attribute] = before
