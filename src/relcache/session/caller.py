"""Find the caller of a transformer: the running pipeline, on the stack, and the thread.

Several pipelines may share a transformer, though only one of them was enabled. The frame of the pipeline's call
identifies it, and lasts exactly as long as its request. Knows nothing of diffusers: a pipeline is an object that runs
a method, and has the transformer and a scheduler as attributes.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from contextvars import ContextVar
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn

from relcache.method import Method

# modules with frames between a pipeline and its transformer, which are skipped
NOT_PIPELINES = ("torch.", "accelerate.", "relcache.", "diffusers.models.", "diffusers.hooks.")
MOST_WRAPPERS = 16  # modules inspected in the search for a wrapped model
SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Named:
    """A context that assigns all calls of a session's transformers to one loop.

    It is for hand-written loops that take turns on one transformer. Enter it around each call of the loop, or around
    the whole loop if no other call comes in between. With a `method` the requests in it have that method.

    Args:
        owner: the requests of the session, referenced weakly.
    """

    def __init__(self, owner: Any, method: Method | None = None):
        self._owner, self.method = weakref.ref(owner), method

    def __enter__(self) -> Named:
        _named.set((self, *_named.get()))
        return self

    def __exit__(self, *error: object) -> None:
        _named.set(_named.get()[1:])

    def is_of(self, owner: Any) -> bool:
        """Return whether this is a context of `owner`."""
        return self._owner() is owner


_named: ContextVar[tuple[Named, ...]] = ContextVar("named", default=())


def begin_named(owner: Any, past: Named | None) -> Named:
    """Enter a new context of `owner` in place of `past`, and return it. Nothing has to leave it."""
    new = Named(owner)
    _named.set((new, *(named for named in _named.get() if named is not past)))
    return new


def contexts_of(owner: Any) -> list[Named]:
    """Return the contexts of `owner` that were entered, the innermost first."""
    return [named for named in _named.get() if named.is_of(owner)]


def method_in_context(owner: Any) -> Method | None:
    """Return the method of the innermost context of `owner` that has one; None if there is none."""
    return next((named.method for named in contexts_of(owner) if named.method is not None), None)


class Mark:
    """A mark on the frame of a pipeline's call. Only the frame refers to it, so it lives as long as the frame.

    A frame cannot be referenced weakly, and a strong reference would keep all of its variables alive. So the mark is
    the frame's trace function, which is called only while a debugger traces. It then calls the debugger's own.
    """

    def __init__(self, frame: FrameType) -> None:
        self._traced = frame.f_trace
        self._frame, self._thread = id(frame), threading.get_ident()
        self._is_suspended = bool(frame.f_code.co_flags & SUSPENDABLE)

    @property
    def is_running(self) -> bool:
        """Whether the call is still running. A stored exception may keep the frame of an ended call alive."""
        if self._is_suspended or self._thread != threading.get_ident():
            return self._is_suspended or is_alive(self._thread)  # a thread can read only its own stack
        present: FrameType | None = sys._getframe(1)
        while present is not None and id(present) != self._frame:
            present = present.f_back
        return present is not None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Mark:
        if self._traced is not None:
            self._traced = self._traced(frame, event, argument)
        return self


class Caller(NamedTuple):
    """The caller of a transformer.

    Attributes:
        pipeline: the object that has a scheduler and runs a method; None for a hand-written loop.
        mark: the mark on the frame of its `__call__`; None if there is none.
        thread: identity of the thread.
        name: the context that the caller has entered; None if there is none.
    """

    pipeline: Any
    mark: Mark | None
    thread: int
    name: Named | None

    @property
    def key(self) -> Mark | Named | None:
        """The mark or name that only this caller's calls share; None for a loop without a name."""
        return self.mark or self.name


def find_caller(requests: Any, model: nn.Module | None = None) -> Caller:
    """Return the caller in this thread: the innermost running pipeline, and if `model` is passed, one that has it.

    `requests` are those of the session, the owner of its contexts.
    """
    pipeline, mark = None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = _owner(frame, pipeline is None)
        timesteps = getattr(getattr(owner, "scheduler", None), "timesteps", None)
        if pipeline is None and isinstance(timesteps, Tensor) and is_pipeline(owner, model):
            pipeline = owner
        if owner is pipeline is not None and frame.f_code.co_name == "__call__":
            mark = mark_of(frame)
            break
        frame = frame.f_back
    return Caller(pipeline, mark, threading.get_ident(), next(iter(contexts_of(requests)), None))


def _owner(frame: FrameType, skips: bool) -> Any:
    """Return the `self` of the method that the frame runs, else None. `skips` excludes frames of `NOT_PIPELINES`."""
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self":
        return None
    if skips and frame.f_globals.get("__name__", "").startswith(NOT_PIPELINES):
        return None
    return frame.f_locals.get("self")


def mark_of(frame: FrameType) -> Mark:
    """Return the mark on a frame; a new one if there is none."""
    mark = frame.f_trace
    if not isinstance(mark, Mark):
        frame.f_trace = mark = Mark(frame)
    return mark


def is_pipeline(owner: Any, model: nn.Module | None) -> bool:
    """Return whether `owner` is no module, and if `model` is passed, has it among its attributes, perhaps wrapped."""
    if owner is None or isinstance(owner, (nn.Module, type)):
        return False
    if model is None:
        return True
    attributes = getattr(owner, "__dict__", None)
    return isinstance(attributes, dict) and any(is_around(value, model) for value in attributes.values())


def is_around(value: Any, model: nn.Module) -> bool:
    """Return whether `value` is `model` or a wrapper of it, such as those of torch.compile and PEFT."""
    if value is model or not isinstance(value, nn.Module):
        return value is model
    return any(inner is model for inner in islice(value.modules(), MOST_WRAPPERS))


def is_alive(thread: int) -> bool:
    """Return whether the thread with this identity is alive."""
    return any(thread == running.ident for running in threading.enumerate())
