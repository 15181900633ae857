"""Swap attributes of module instances and put them back exactly.

Knows nothing of caching. Only instances are touched, never classes, so that a second model of the same class is not
affected. A copy of a patched module is unpatched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

_ABSENT = object()
UNPICKLABLE = (
    "a model with relcache enabled cannot be pickled: call disable() on its handle first, or save its weights with "
    "save_pretrained"
)


class Replacement:
    """Stands in for a bound method of one module: `call(original, *args, **kwargs)`, or `original` once retired."""

    def __init__(self, module: nn.Module, attribute: str, call: Callable[..., Any]):
        self.original = getattr(module, attribute)
        self.call: Callable[..., Any] | None = call
        self.attribute = attribute
        self.__name__ = attribute
        self.__wrapped__ = self.original  # lets inspect.signature see the original's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.call is None:
            return self.original(*args, **kwargs)
        return self.call(self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """What was there before, bound to the copy of the module that is being made."""
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> Any:
        raise TypeError(UNPICKLABLE)


def is_compiled_anew(module: nn.Module) -> bool:
    """Whether `module.compile()` was called since its call was swapped: what it compiled holds the replacement."""
    compiled = module._compiled_call_impl
    swapped = isinstance(module.__dict__.get("forward"), Replacement) or isinstance(compiled, Replacement)
    return swapped and compiled is not None and not isinstance(compiled, Replacement)


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
        self._swapped: list[tuple[nn.Module, Replacement, Any]] = []
        self._hooks: list[RemovableHandle] = []

    def watch(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        """Call `before(module, args, kwargs)` and `after(module, args, kwargs, output)` around `module`'s forward.

        Where forward raises an Exception, `after` is called with the output None. These are torch's own hooks: they
        hold whatever others put in the place of `module.forward`, as offloading does after each request.
        """
        self._hooks.append(module.register_forward_pre_hook(Hook(before), with_kwargs=True))
        self._hooks.append(module.register_forward_hook(Hook(after), with_kwargs=True, always_call=True))

    def swap(self, module: nn.Module, attribute: str, call: Callable[..., Any]) -> None:
        """Let `module.attribute(...)` become `call(original, ...)`."""
        before = module.__dict__.get(attribute, _ABSENT)
        replacement = Replacement(module, attribute, call)
        module.__dict__[attribute] = replacement
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
            if module.__dict__.get(replacement.attribute) is not replacement:
                warnings.warn(
                    f"{type(module).__name__}.{replacement.attribute} was replaced by other code while relcache was "
                    "enabled; that replacement is left in place, and relcache no longer acts behind it",
                    stacklevel=3,
                )
            elif before is _ABSENT:
                del module.__dict__[replacement.attribute]
            else:
                module.__dict__[replacement.attribute] = before
