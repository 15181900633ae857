"""How a unit is skipped: stands in for its modules' forwards, reads their inputs, returns what the cache says.

Knows specs and the patch; what is kept or forecast is the cache's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from relcache.engine.cache import Cache, Visit
from relcache.engine.compiled import CompiledRunner
from relcache.engine.features import form_of, given_streams, handed_on, stream_places, token_dimension
from relcache.engine.gauge import Gauge
from relcache.engine.patch import Patch
from relcache.models.spec import Unit


class Opened(NamedTuple):
    """A unit whose first module was called: its place, the cache's visit, its output if it is skipped, and a tensor
    that wants a gradient. The forecast is made at once: others may write into the input before the last module runs."""

    place: int
    visit: Visit
    forecast: Any
    anchor: Tensor | None


class Runner:
    """Runs one unit, or as many as a forward calls its modules: `index` is the first one's among the session's."""

    def __init__(self, cache: Cache, index: int, unit: Unit):
        self._cache, self._index, self._name = cache, index, unit.name
        self._part = unit.part
        self._streams = stream_places(next(iter(unit.modules.values())), unit.part)
        self._tokens = token_dimension(unit.part)
        self._first = weakref.ref(next(iter(unit.modules.values())))
        self._is_block = unit.part.residual and len(unit.modules) == 1
        self._form: Any = None  # in which the first block has returned its streams last
        self._open: Opened | None = None  # of a unit of several modules until its last
        self._most, self._calls, self._serial = unit.part.calls, 0, -1
        self._compiled = CompiledRunner(cache.pace, cache.slots[index], unit, cache.forecaster)

    def attach(self, patch: Patch, unit: Unit) -> None:
        """Stand in for the forwards of the unit's modules."""
        *entries, last = unit.modules.values()
        if entries and unit.part.run:
            for place, module in enumerate(unit.modules.values()):
                patch.swap_call(module, self._block(place, module, is_last=module is last))
            return
        for place, module in enumerate(entries):
            patch.swap_call(module, self._entry(place))
        patch.swap_call(last, self._exit if entries else self._whole)

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor | None]:
        return [value.detach() if value is not None else None for value in given_streams(self._streams, args, kwargs)]

    def _whole(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._compiled.whole(original, args, kwargs)
        if not self._cache.is_active:
            return original(*args, **kwargs)
        return self._end(self._begin(original, args, kwargs), original, args, kwargs)

    def _begin(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened:
        """The unit's first module is called: from its inputs the cache says whether the unit is skipped."""
        index = self._next()

        def look(gauge: Gauge) -> None:
            module = self._first()
            assert module is not None
            gauge.look(module, original, args, kwargs, self._unchanged)

        visit = self._cache.visit(index, self._inputs(args, kwargs), look)
        forecast = self._cache.forecast(index, visit) if visit.skip else None
        return Opened(index, visit, forecast, _wants_gradient(args, kwargs))

    def _unchanged(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a block returns that does nothing: what those that wrap its forward get when it is left half-way."""
        return handed_on(self._form, self._part, given_streams(self._streams, args, kwargs))

    def _end(self, opened: Opened, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The unit's last module is called: its output, forecast or computed and kept."""
        if opened.visit.skip:
            return _untrainable(opened.forecast, opened.anchor)
        output = original(*args, **kwargs)
        self._cache.keep(opened.place, opened.visit, output)
        if self._is_block:
            self._form = form_of(output)
        return output

    def _next(self) -> int:
        """The unit of the call that begins; a call too many is taken for the last one's second."""
        if self._serial != self._cache.serial:
            self._serial, self._calls = self._cache.serial, 0
        self._calls += 1
        return self._index + min(self._calls, self._most) - 1

    def _entry(self, place: int) -> Callable[..., Any]:
        def enter(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return self._compiled.entry(place, original, args, kwargs)
            if not self._cache.is_active:
                return original(*args, **kwargs)
            if place == 0:
                self._open = self._begin(original, args, kwargs)
            visit = self._opened().visit
            if visit.skip:
                return visit.cell.empties[place]
            output = original(*args, **kwargs)
            visit.cell.empties[place] = tree_map_only(Tensor, self._without_tokens, output)
            return output

        return enter

    def _exit(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._compiled.exit(original, args, kwargs)
        if not self._cache.is_active:
            return original(*args, **kwargs)
        opened, self._open = self._opened(), None
        return self._end(opened, original, args, kwargs)

    def _block(self, place: int, module: nn.Module, is_last: bool) -> Callable[..., Any]:
        """One block of a run: on a cached step it hands its streams on, and the last returns the forecast."""
        streams = stream_places(module, self._part)

        def run(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return self._compiled.block(place, streams, is_last, original, args, kwargs)
            if not self._cache.is_active:
                return original(*args, **kwargs)
            if place == 0:
                self._open = self._begin(original, args, kwargs)
                self._cache.in_run = self._name if self._open.visit.skip else ""
            if self._open is None or self._serial != self._cache.serial:  # the first block was left out of this call
                return original(*args, **kwargs)
            opened, visit = self._open, self._open.visit
            if is_last:
                self._open, self._cache.in_run = None, ""
                return self._end(opened, original, args, kwargs)
            if visit.skip:
                return handed_on(visit.cell.empties[place], self._part, given_streams(streams, args, kwargs))
            output = original(*args, **kwargs)
            visit.cell.empties[place] = form_of(output)
            if place == 0:
                self._form = form_of(output)
            return output

        return run

    def _opened(self) -> Opened:
        if self._open is None:
            raise RuntimeError(
                f"the modules of {self._name} were called in another order than the spec gives them, or twice: the "
                "first entry comes first, the exit last"
            )
        return self._open

    def _without_tokens(self, features: Tensor) -> Tensor:
        return features.detach().narrow(self._tokens, 0, 0).clone()


class _NoGradient(torch.autograd.Function):
    """Hands features on, and refuses to hand a gradient back."""

    @staticmethod
    def forward(context: Any, features: Tensor, anchor: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "relcache has no gradients: the output of a cached step was forecast, not computed. Call disable() on the "
            "handle to train, or to differentiate through the model"
        )


def _wants_gradient(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A tensor among the arguments for which a gradient is wanted."""
    if not torch.is_grad_enabled():
        return None
    tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return next((tensor for tensor in tensors if tensor.requires_grad), None)


def _untrainable(output: Any, anchor: Tensor | None) -> Any:
    """`output`, through which no gradient flows back unnoticed to `anchor`."""
    if anchor is None:
        return output
    return tree_map_only(Tensor, lambda features: _NoGradient.apply(features, anchor), output)
