"""Tells of the calls of one model, whichever way it is called. Knows nothing of caching."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from relcache.engine.patch import UNPICKLABLE, Patch

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
OTHERS_CODE = (
    "a transformer with relcache enabled was called from within code that torch.compile() has made of something else, "
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
    """Say that the model is called from code in which its calls cannot be told."""
    raise RuntimeError(OTHERS_CODE)


# torch.compile leaves such a function out of what it makes, and calls it as it is: so the error reaches the user.
refuse._torchdynamo_disable = True  # type: ignore[attr-defined]
refuse._torchdynamo_disable_msg = OTHERS_CODE  # type: ignore[attr-defined]


class Watch(Patch):
    """Calls `before(module, args, kwargs)` and `after(module, args, kwargs, output)` around each call of a model.

    Where forward raises, `after` is called with the output None. The calls are told by torch's own hooks,
    which hold whatever others put in the place of `module.forward`, as offloading does after each request. Of a module
    that is compiled the compiled call is swapped instead, as hooks would be compiled with it. Code that calls
    `module.forward(...)` goes past both; that is swapped as well, and tells of the calls that were not told yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hooks: list[RemovableHandle] = []
        self._direct = Patch()  # on the forward itself
        self._own: Any = None  # the class's own forward, if that is what was swapped
        self._model: weakref.ref[nn.Module] | None = None
        self._before: Before | None = None
        self._after: After | None = None
        self._told: set[int] = set()  # threads whose call has been told, and whose forward comes next
        self._telling = False  # whether there are any: what compiled code can read

    def watch(self, module: nn.Module, before: Before, after: After) -> None:
        """Begin to tell of the calls of `module`."""
        self._model, self._before, self._after = weakref.ref(module), before, after
        if module._compiled_call_impl is not None:
            self.swap(module, "_compiled_call_impl", self._compiled)
        else:
            self._hook(module)
        self._swap_forward(module)

    def _hook(self, module: nn.Module) -> None:
        self._hooks.append(module.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        self._hooks.append(module.register_forward_hook(Hook(self._end), with_kwargs=True, always_call=True))

    def renew(self, module: nn.Module) -> None:
        """See that `module.forward(...)` is told of, where other code has put back a forward from before."""
        if self._model is not None and not self._direct.acts_on(module, "forward"):
            self._direct.restore()
            self._swap_forward(module)

    def _swap_forward(self, module: nn.Module) -> None:
        self._own = type(module).forward if "forward" not in module.__dict__ else None
        self._direct.swap(module, "forward", self._forward)

    def restore(self) -> None:
        """As `Patch.restore`, and no call is told of any longer."""
        while self._hooks:
            self._hooks.pop().remove()
        self._direct.restore()
        super().restore()
        self._model = self._before = self._after = None

    def suspend(self) -> Callable[[], None]:
        """As `Patch.suspend`."""
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
        self._tell(True)  # `before` may run the forward, too
        try:
            self._before(module, args, kwargs)
        except BaseException:
            self._tell(False)
            raise
        self._tell(True)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._tell(False)
        if self._after is not None:
            self._after(module, args, kwargs, output)

    def _tell(self, told: bool) -> None:
        change = self._told.add if told else self._told.discard
        change(threading.get_ident())
        self._telling = bool(self._told)

    def _compiled(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stands in for a compiled call."""
        if torch.compiler.is_compiling():
            refuse()
        return self._around(original, args, kwargs)

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward itself."""
        if torch.compiler.is_compiling():
            if not self._telling:
                refuse()
            return original(*args, **kwargs)
        module = self._model() if self._model is not None else None
        if self._own is not None and module is not None and type(module).forward is not self._own:
            original = type(module).forward.__get__(module)  # since then someone has given the class another one
        if threading.get_ident() in self._told:
            self._tell(False)
            try:
                return original(*args, **kwargs)
            except Exception:
                raise  # the hooks tell of it
            except BaseException:
                if module is not None:
                    self._end(module, args, kwargs, None)
                raise
        return self._around(original, args, kwargs)

    def _around(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self._model() if self._model is not None else None
        if module is None:
            return original(*args, **kwargs)
        self._begin(module, args, kwargs)
        try:
            output = original(*args, **kwargs)
        except BaseException:
            self._end(module, args, kwargs, None)
            raise
        self._end(module, args, kwargs, output)
        return output
