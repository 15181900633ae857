"""Finds who calls a transformer: the pipeline that runs, on the stack, and the thread.

Several pipelines may share a transformer, and only one of them was enabled. They are told apart by the frame of the
pipeline's own call, which lasts exactly as long as its request. Knows nothing of diffusers: a pipeline is an object
that runs a method, and has the transformer and a scheduler as attributes.
"""

from __future__ import annotations

import inspect
import sys
import threading
from contextvars import ContextVar
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn

# modules whose frames are between a pipeline and its transformer, and are skipped
NOT_PIPELINES = ("torch.", "accelerate.", "relcache.", "diffusers.models.", "diffusers.hooks.")
MOST_WRAPPERS = 16  # modules searched for a wrapped model
SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Named:
    """A context in which all calls of a transformer belong to one loop.

    It serves loops written by hand that take turns on one transformer. Enter it around each call of the loop, as often
    as needed, or around the whole loop if no other call comes in between.
    """

    def __enter__(self) -> Named:
        _named.set((self, *_named.get()))
        return self

    def __exit__(self, *error: object) -> None:
        _named.set(_named.get()[1:])


_named: ContextVar[tuple[Named, ...]] = ContextVar("named", default=())


class Mark:
    """A mark on the frame of a pipeline's call, which only the frame refers to: it lives as long as the frame.

    A frame cannot be referenced weakly, and a strong reference would keep all of its variables alive. But a frame takes
    a trace function, which is called only while a debugger traces. The mark then passes the call on to the debugger's.
    """

    def __init__(self, frame: FrameType) -> None:
        self._traced = frame.f_trace
        self._frame, self._thread = id(frame), threading.get_ident()
        self._is_suspended = bool(frame.f_code.co_flags & SUSPENDABLE)

    @property
    def is_running(self) -> bool:
        """Whether the call goes on. A stored exception keeps frames alive that have ended."""
        if self._is_suspended or self._thread != threading.get_ident():
            return self._is_suspended or is_alive(self._thread)  # only this thread's own stack can be read
        present: FrameType | None = sys._getframe(1)
        while present is not None and id(present) != self._frame:
            present = present.f_back
        return present is not None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Mark:
        if self._traced is not None:
            self._traced = self._traced(frame, event, argument)
        return self


class Caller(NamedTuple):
    """Who calls a transformer.

    Attributes:
        pipeline: the object with a scheduler whose method is running, None for a loop written by hand.
        mark: on the frame of its `__call__`, None where it has none.
        thread: identity of the thread.
        name: the context that the caller has entered, if any.
    """

    pipeline: Any
    mark: Mark | None
    thread: int
    name: Named | None

    @property
    def sign(self) -> Mark | Named | None:
        """The mark or name that its calls share with no other caller's; None for a loop without a name."""
        return self.mark or self.name


def find_caller(model: nn.Module | None = None) -> Caller:
    """Find the caller in this thread: the innermost pipeline that runs, and has `model` if one is passed."""
    pipeline, mark = None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = _owner(frame, pipeline is None)
        timesteps = getattr(getattr(owner, "scheduler", None), "timesteps", None)
        if pipeline is None and isinstance(timesteps, Tensor) and (model is None or has_model(owner, model)):
            pipeline = owner
        if owner is pipeline is not None and frame.f_code.co_name == "__call__":
            mark = mark_of(frame)
            break
        frame = frame.f_back
    return Caller(pipeline, mark, threading.get_ident(), next(iter(_named.get()), None))


def _owner(frame: FrameType, is_outside: bool) -> Any:
    """The object whose method the frame runs, else None. Frames of `NOT_PIPELINES` are skipped where `is_outside`."""
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self":
        return None
    if is_outside and frame.f_globals.get("__name__", "").startswith(NOT_PIPELINES):
        return None
    return frame.f_locals.get("self")


def mark_of(frame: FrameType) -> Mark:
    """Return the mark on a frame, a new one if there is none."""
    mark = frame.f_trace
    if not isinstance(mark, Mark):
        frame.f_trace = mark = Mark(frame)
    return mark


def has_model(owner: Any, model: nn.Module) -> bool:
    """Whether `owner` is an object, but no module, with `model` among its attributes, perhaps wrapped."""
    if owner is None or isinstance(owner, (nn.Module, type)):
        return False
    attributes = getattr(owner, "__dict__", None)
    return isinstance(attributes, dict) and any(is_around(value, model) for value in attributes.values())


def is_around(value: Any, model: nn.Module) -> bool:
    """Whether `value` is `model`, or a wrapper of it such as those of torch.compile and PEFT."""
    if value is model or not isinstance(value, nn.Module):
        return value is model
    return any(inner is model for inner in islice(value.modules(), MOST_WRAPPERS))


def is_alive(thread: int) -> bool:
    """Whether the thread with this identity lives."""
    return any(thread == one.ident for one in threading.enumerate())
