"""Attach a session to its models, pipeline and scheduler, and detach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from relcache.engine.cache import Cache
from relcache.engine.host import Host, refuse_cache
from relcache.engine.patch import Patch
from relcache.engine.watch import After
from relcache.session.caller import is_around
from relcache.session.correction import Correction
from relcache.session.requests import Requests

HostBefore = Callable[[Host, nn.Module, tuple[Any, ...], dict[str, Any]], None]


class Attachment:
    """The patches of one session.

    Args:
        hosts: the models with the units to patch.
        cache, requests, correction: those of the session.
    """

    def __init__(self, hosts: Sequence[Host], cache: Cache, requests: Requests, correction: Correction):
        self._hosts, self._cache, self._requests, self._correction = hosts, cache, requests, correction
        self._beginnings = Patch()  # on the pipeline and its scheduler
        self.is_active = False

    def attach(self, before: HostBefore, after: After, end_request: Callable[..., Any]) -> None:
        """Patch the units' forwards, and watch the models' calls. If this fails, call `detach`.

        `before` and `after` are called around each call, `end_request` instead of `_reset_stateful_cache`.
        """
        for host in self._hosts:
            model = host.present_model()
            self._watch(host, model, before, after)
            if hasattr(model, "cache_context"):
                host.contexts.swap(model, "cache_context", self._enter_context)
            if hasattr(model, "_reset_stateful_cache"):
                host.contexts.swap(model, "_reset_stateful_cache", partial(end_request, model))
            if hasattr(model, "enable_cache"):
                host.contexts.swap(model, "enable_cache", refuse_cache)
            host.swap_units(self._cache, model)
        pipeline = self._requests.pipeline
        if callable(getattr(pipeline, "progress_bar", None)):  # diffusers' pipelines call it before their loop
            self._beginnings.swap(pipeline, "progress_bar", self._begin_loop)
        self._requests.make_finer(self._beginnings)
        self._correction.attach(self._requests.scheduler)
        self.is_active = True

    def _watch(self, host: Host, model: nn.Module, before: HostBefore, after: After) -> None:
        """Watch the model's calls, even if it is compiled later."""

        def compile(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            host.watch.restore()
            try:
                original(*args, **kwargs)
            finally:
                self._watch(host, model, before, after)

        host.watch.watch(model, partial(before, host), after)
        host.watch.swap(model, "compile", compile)

    def suspend(self) -> Callable[[], None]:
        """Remove all patches, and return a function that puts the same ones back."""
        self.is_active, resume = False, ExitStack()
        resume.callback(setattr, self, "is_active", True)  # called last
        suspends = [*(host.suspend for host in self._hosts), self._beginnings.suspend, self._correction.suspend]
        for suspend in suspends:
            resume.callback(suspend())
        return resume.close

    def detach(self) -> None:
        """Restore the original objects. A second call does nothing."""
        self.is_active = False
        for host in self._hosts:
            host.restore()
        self._beginnings.restore()
        self._correction.detach()

    @contextmanager
    def _enter_context(self, original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._requests.in_context(name), original(name, *args, **kwargs) as value:
            yield value

    def _begin_loop(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Check, at the beginning of the enabled pipeline's loop, that it still has these transformers."""
        problem = self.replaced()
        if problem is not None:
            self._requests.open_uncached("replaced", problem)
        return original(*args, **kwargs)

    def replaced(self) -> str | None:
        """Return a note if the enabled pipeline now has another transformer; else None."""
        pipeline = self._requests.pipeline
        attributes = list(vars(pipeline).values()) if pipeline is not None else []
        for host in self._hosts if attributes and self.is_active else ():
            model = host.model()
            if model is None or not any(is_around(value, model) for value in attributes):
                return (
                    f"the pipeline's transformer is another one than the {host.model_name} that was enabled, and is "
                    "not cached: call disable() on the handle, and relcache.enable(pipeline) again"
                )
        return None
