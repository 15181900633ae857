"""Whose call it is: the pipeline that runs, found on the stack, and the thread.

Several pipelines may share a transformer, and only one of them was enabled. They are told apart for certain by
the frame of the pipeline's own call, which lasts exactly as long as its request does. Knows nothing of diffusers: a
pipeline is an object that runs a method, and holds the transformer and a scheduler.
"""

from __future__ import annotations

import inspect
import sys
import threading
from contextvars import ContextVar
from itertools import count, islice
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn

NOT_PIPELINES = ("torch.", "accelerate.", "relcache.", "diffusers.models.", "diffusers.hooks.")
"""Modules whose frames are passed over: those between a pipeline and its transformer."""

MOST_WRAPPERS = 16  # modules among which a wrapped model is looked for
SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_serials = count()


class Named:
    """A context: all calls of a transformer within it are of one loop, wherever they come from.

    For loops written by hand that take turns on one transformer. It is entered around each call of its loop, or around
    the whole loop where no other call comes in between, as often as one likes.
    """

    def __init__(self) -> None:
        self.serial = next(_serials)

    def __enter__(self) -> Named:
        _named.set((self, *_named.get()))
        return self

    def __exit__(self, *error: object) -> None:
        _named.set(_named.get()[1:])


_named: ContextVar[tuple[Named, ...]] = ContextVar("named", default=())


class Mark:
    """Left on the frame of a pipeline's call, which alone holds it: it lives as long as the frame.

    A frame can neither be referred to weakly nor be held, as it holds all of its variables; but it can be given a trace
    function, which nobody calls unless a debugger traces. This one passes on to the debugger's.
    """

    def __init__(self, frame: FrameType) -> None:
        self.serial = next(_serials)
        self._traced = frame.f_trace
        self._frame, self._thread = id(frame), threading.get_ident()
        self._is_suspended = bool(frame.f_code.co_flags & SUSPENDABLE)

    @property
    def is_running(self) -> bool:
        """Whether the call goes on. An exception that is kept holds the frames that it has left."""
        return self._is_suspended or is_running(self._frame, self._thread)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Mark:
        if self._traced is not None:
            self._traced = self._traced(frame, event, argument)
        return self


class Caller(NamedTuple):
    """Who calls a transformer.

    Attributes:
        pipeline: the object with a scheduler whose method is running, None for a loop written by hand.
        mark: of the frame of its `__call__`, None where it has none.
        thread: identity of the thread.
        name: the context that the caller has entered, if any.
    """

    pipeline: Any
    mark: Mark | None
    thread: int
    name: Named | None

    @property
    def sign(self) -> Mark | Named | None:
        """What its calls have in common, and others' have not; None for a loop without a name."""
        return self.mark or self.name


def find_caller(model: nn.Module | None = None) -> Caller:
    """Who is calling in this thread: the innermost pipeline that runs, and holds `model` if one is given."""
    pipeline, mark = None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = _owner(frame, pipeline is None)
        if pipeline is None and timesteps_of(owner) is not None and (model is None or holds(owner, model)):
            pipeline = owner
        if owner is pipeline is not None and frame.f_code.co_name == "__call__":
            mark = mark_of(frame)
            break
        frame = frame.f_back
    return Caller(pipeline, mark, threading.get_ident(), next(iter(_named.get()), None))


def _owner(frame: FrameType, is_outside: bool) -> Any:
    """The object whose method the frame runs; None if it runs none, or is passed over where `is_outside`."""
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self":
        return None
    if is_outside and frame.f_globals.get("__name__", "").startswith(NOT_PIPELINES):
        return None
    return frame.f_locals.get("self")


def mark_of(frame: FrameType) -> Mark:
    """The mark on a frame, left now if there is none."""
    mark = frame.f_trace
    if not isinstance(mark, Mark):
        frame.f_trace = mark = Mark(frame)
    return mark


def timesteps_of(pipeline: Any) -> Tensor | None:
    """The timesteps of a pipeline's scheduler, if it has any."""
    timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    return timesteps if isinstance(timesteps, Tensor) else None


def holds(owner: Any, model: nn.Module) -> bool:
    """Whether `owner` is an object, no module itself, with `model` among its attributes, perhaps wrapped."""
    if owner is None or isinstance(owner, (nn.Module, type)):
        return False
    attributes = getattr(owner, "__dict__", None)
    return isinstance(attributes, dict) and any(is_around(value, model) for value in attributes.values())


def is_around(value: Any, model: nn.Module) -> bool:
    """Whether `value` is `model`, or a wrapper of it such as those of torch.compile and PEFT."""
    if value is model or not isinstance(value, nn.Module):
        return value is model
    return any(inner is model for inner in islice(value.modules(), MOST_WRAPPERS))


def is_running(frame: int, thread: int) -> bool:
    """Whether the frame of this identity is on the stack of the thread. Only this thread's own stack can be walked: of
    another one, which goes on meanwhile, it is supposed while there is such a thread."""
    if thread != threading.get_ident():
        return is_alive(thread)
    present: FrameType | None = sys._getframe(1)
    while present is not None and id(present) != frame:
        present = present.f_back
    return present is not None


def is_alive(thread: int) -> bool:
    """Whether there is such a thread."""
    return any(thread == one.ident for one in threading.enumerate())
