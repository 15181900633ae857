"""How a unit is skipped: stands in for its modules' forwards, and forecasts or keeps their output.

Eager and compiled units are one state machine: the first module opens a `Visit`, the last one closes it. An eager unit
asks the cache for its visit, and hands its output over. Compiled code cannot ask. The cache lays out a visit for each
unit before the call, and collects the outputs after it. So there are two graphs, of full and of cached steps, without
breaks. They read no Python number that differs between blocks or steps, so all blocks of a kind share them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from relcache.engine.cache import Cache
from relcache.engine.features import (
    counted,
    form_of,
    from_rows,
    handed_on,
    stream_arguments,
    stream_of,
    streams_given,
    to_rows,
    token_dimension,
)
from relcache.engine.gauge import Gauge
from relcache.engine.patch import Patch
from relcache.engine.state import Visit
from relcache.forecasters.base import within_type
from relcache.models.spec import Unit
from relcache.storage.packing import unpacked


class Runner:
    """Runs one unit, or as many as a forward calls its modules: `index` is the first one's in the session."""

    def __init__(self, cache: Cache, index: int, unit: Unit):
        first = next(iter(unit.modules.values()))
        self._cache, self._index, self._name, self._part = cache, index, unit.name, unit.part
        self._forecaster = cache.forecaster
        self._compiled = cache.visits[index]  # compiled code sees nothing else of the cache
        self._streams = stream_arguments(first, unit.part)
        self._first = weakref.ref(first)
        self._keeps_inputs = cache.forecaster.keeps_input or unit.part.residual
        self._form: Any = None  # how the first block returned its streams last

    def attach(self, patch: Patch, unit: Unit) -> None:
        """Stand in for the forwards of the unit's modules."""
        modules = list(unit.modules.values())
        for position, module in enumerate(modules):
            patch.swap_call(module, self._stand_in(position, module, is_last=position == len(modules) - 1))

    def _stand_in(self, position: int, module: nn.Module, is_last: bool) -> Callable[..., Any]:
        """Return the stand-in for the forward of one module of the unit."""
        is_run = self._part.run
        streams = stream_arguments(module, self._part) if is_run else []

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            compiling = torch.compiler.is_compiling()
            if not (self._compiled.active if compiling else self._cache.is_active):
                return original(*args, **kwargs)
            if position == 0:
                self._open(compiling, original, args, kwargs)
            visit = self._compiled if compiling else self._cache.opened(self._index, is_last)
            if visit is None or not visit.opened:
                if is_run:  # this call leaves out the first block
                    return original(*args, **kwargs)
                raise RuntimeError(
                    f"the modules of {self._name} were called in another order than the spec gives them, or twice: the "
                    "first entry comes first, the exit last"
                )
            if is_last:
                return self._close(compiling, visit, original, args, kwargs)
            if visit.skip:
                empty = visit.empties[position]
                return handed_on(empty, self._part, streams_given(streams, args, kwargs)) if is_run else empty
            output = original(*args, **kwargs)
            if position == 0 and is_run and not compiling:
                self._form = form_of(output)
            visit.empties[position] = form_of(output) if is_run else self._without_tokens(output)
            return output

        return forward

    def _open(
        self, compiling: bool, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Begin the unit: learn whether it is skipped, and forecast at once, before others write into its inputs."""
        given = [None if value is None else value.detach() for value in streams_given(self._streams, args, kwargs)]
        if compiling:
            visit = self._compiled
            visit.twice, visit.opened = visit.opened, True
            if self._keeps_inputs and not visit.skip:  # until the call's end, when others may have written into them
                given = [None if value is None else value.clone() for value in given]
            inputs = [None if value is None else to_rows(value, self._part.layout, visit.rows) for value in given]
            visit.inputs = None if visit.skip else inputs
        else:
            visit, inputs = self._cache.visit(self._index, given, self._run_up(original, args, kwargs))
            visit.anchor = _wants_gradient(args, kwargs)
        if visit.skip:
            visit.output = self._forecast(compiling, visit, inputs)

    def _run_up(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[Gauge], None]:
        """Return a function that runs the unit's first module up to the gauge."""

        def run_up(gauge: Gauge) -> None:
            module = self._first()
            assert module is not None
            gauge.run_up(module, original, args, kwargs, self._unchanged)

        return run_up

    def _unchanged(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of a block that does nothing: wrappers of its forward get it when a gauge leaves it."""
        return handed_on(self._form, self._part, streams_given(self._streams, args, kwargs))

    def _close(
        self,
        compiling: bool,
        visit: Visit,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """End the unit: return the forecast, or compute its output and keep it."""
        visit.closed = True
        if visit.skip:
            forecast, visit.output = visit.output, None
            return _without_gradient(forecast, visit.anchor)
        output = original(*args, **kwargs)
        if compiling:
            visit.output = tree_map_only(Tensor, lambda t: t.detach().clone(), output)  # others may write into it
            return output
        self._cache.keep(visit, output)
        if self._part.residual and not self._part.run:
            self._form = form_of(output)
        return output

    def _forecast(self, compiling: bool, visit: Visit, inputs: list[Tensor | None]) -> Any:
        """Return the output of a skipped unit, in the form that it returned last."""
        part, coefficients = self._part, visit.coefficients
        numbers = list(coefficients.unbind(0)) if isinstance(coefficients, Tensor) else coefficients
        make = self._forecaster.forecast_far if visit.far else self._forecaster.forecast
        outputs, codes = [], []
        for stream in visit.streams:
            input = stream_of(inputs, stream.source)
            read = counted(input, stream.valid) if self._forecaster.reads_input else input
            state = unpacked(stream.state) if compiling else self._cache.store.get(stream.state)
            output, code = make(state, numbers, read)
            codes.append(code)
            if part.residual:
                output, code = within_type(input + output)
                codes.append(code)
            elif not numbers:
                output = output.clone()  # a view of what is cached, and the caller may write into it
            outputs.append(from_rows(output, part.layout))
        visit.codes = [code for code in codes if code is not None]
        if visit.form is None:
            return outputs[0]
        return tuple(None if index is None else outputs[index] for index in visit.form)

    def _without_tokens(self, output: Any) -> Any:
        dimension = token_dimension(self._part)
        return tree_map_only(Tensor, lambda t: t.detach().narrow(dimension, 0, 0).clone(), output)


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
    """Return a tensor among the arguments that requires a gradient."""
    if not torch.is_grad_enabled():
        return None
    tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return next((tensor for tensor in tensors if tensor.requires_grad), None)


def _without_gradient(output: Any, anchor: Tensor | None) -> Any:
    """Return `output` so that a gradient which flows back to `anchor` raises an error."""
    if anchor is None:
        return output
    return tree_map_only(Tensor, lambda features: _NoGradient.apply(features, anchor), output)
