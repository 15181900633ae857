"""Report the calls of one model, as `model(...)` and as `model.forward(...)`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from relcache.engine.forwards import UNPICKLABLE
from relcache.engine.patch import Patch

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
INSIDE_COMPILED_CODE = (
    "a transformer with relcache enabled was called from code that torch.compile() made from something else, "
    "in which nothing can be cached: call transformer.compile() in the place of torch.compile(transformer) or "
    "torch.compile(transformer.forward), and set pipe.transformer to the transformer itself"
)


class Hook:
    """A forward hook that a copy of its module does not inherit."""

    def __init__(self, call: Callable[..., None] | None):
        self.call = call

    def __call__(self, *args: Any) -> None:
        if self.call is None:
            return
        if torch.compiler.is_compiling():
            refuse()
        self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(None)

    def __reduce__(self) -> Any:
        raise TypeError(UNPICKLABLE)


def refuse() -> NoReturn:
    """Raise the error for a call from other compiled code."""
    raise RuntimeError(INSIDE_COMPILED_CODE)


# torch.compile calls such a function instead of tracing it, so the error reaches the user.
refuse._torchdynamo_disable = True  # type: ignore[attr-defined]
refuse._torchdynamo_disable_msg = INSIDE_COMPILED_CODE  # type: ignore[attr-defined]


class Watch(Patch):
    """Calls `before(module, args, kwargs)` and `after(module, args, kwargs, output)` around each call of a model.

    If the forward raises, `after` gets the output None. Torch's own hooks report the calls: they stay when other code,
    such as offloading, replaces `module.forward`. On a compiled module the compiled call is swapped instead, as hooks
    would be compiled, too. A call of `module.forward(...)` bypasses both. So the forward is swapped as well, and
    reports the calls that are not reported yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hooks: list[RemovableHandle] = []
        self._direct = Patch()  # of the forward itself
        self._class_forward: Any = None  # the class's forward, if the patch replaced that
        self._model: weakref.ref[nn.Module] | None = None
        self._before: Before | None = None
        self._after: After | None = None
        self._reported: set[int] = set()  # threads with a reported call, before its forward
        self._any_reported = False  # for compiled code

    def watch(self, module: nn.Module, before: Before, after: After) -> None:
        """Start reporting the calls of `module`."""
        self._model, self._before, self._after = weakref.ref(module), before, after
        if module._compiled_call_impl is not None:
            self.swap(module, "_compiled_call_impl", self._report)
        else:
            self._hook(module)
        self._swap_forward(module)

    def _hook(self, module: nn.Module) -> None:
        self._hooks.append(module.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        self._hooks.append(module.register_forward_hook(Hook(self._end), with_kwargs=True, always_call=True))

    def renew(self, module: nn.Module) -> None:
        """Swap `module.forward` again if other code has restored an earlier forward."""
        if self._model is not None and not self._direct.acts_on(module, "forward"):
            self._direct.restore()
            self._swap_forward(module)

    def _swap_forward(self, module: nn.Module) -> None:
        self._class_forward = type(module).forward if "forward" not in module.__dict__ else None
        self._direct.swap(module, "forward", self._call_forward)

    def restore(self) -> None:
        """Restore the original objects and stop reporting."""
        while self._hooks:
            self._hooks.pop().remove()
        self._direct.restore()
        super().restore()
        self._model = self._before = self._after = None

    def suspend(self) -> Callable[[], None]:
        """Restore the original objects, and return a function that puts the hooks and replacements back."""
        hooked = bool(self._hooks)
        while self._hooks:
            self._hooks.pop().remove()
        resume, resume_direct, module = super().suspend(), self._direct.suspend(), self._model

        def resume_all() -> None:
            resume()
            resume_direct()
            if hooked and module is not None and (model := module()) is not None:
                self._hook(model)

        return resume_all

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._before is None:
            return
        self._set_reported(True)  # `before` may run the forward, too
        try:
            self._before(module, args, kwargs)
        except BaseException:
            self._set_reported(False)
            raise
        self._set_reported(True)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._set_reported(False)
        if self._after is not None:
            self._after(module, args, kwargs, output)

    def _set_reported(self, reported: bool) -> None:
        change = self._reported.add if reported else self._reported.discard
        change(threading.get_ident())
        self._any_reported = bool(self._reported)

    def _call_forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Replace the forward itself."""
        if torch.compiler.is_compiling():
            if not self._any_reported:
                refuse()
            return original(*args, **kwargs)
        module = self._model() if self._model is not None else None
        if self._class_forward is not None and module is not None and type(module).forward is not self._class_forward:
            original = type(module).forward.__get__(module)  # the class has a new forward
        if threading.get_ident() not in self._reported:
            return self._report(original, *args, **kwargs)
        self._set_reported(False)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            if module is not None and not isinstance(error, Exception):  # torch's hooks report an Exception
                self._end(module, args, kwargs, None)
            raise

    def _report(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `original` between `before` and `after`; this also replaces a compiled call."""
        if torch.compiler.is_compiling():
            refuse()
        module = self._model() if self._model is not None else None
        if module is None:
            return original(*args, **kwargs)
        self._begin(module, args, kwargs)
        output = None
        try:
            output = original(*args, **kwargs)
            return output
        finally:
            self._end(module, args, kwargs, output)
