"""Skip a unit: replace its modules' forwards, and forecast or keep its output.

Eager and compiled units are one state machine: the first module opens a `Visit`, the last one closes it. An eager unit
gets its visit from the cache, and passes its output back. Compiled code cannot call the cache. So the cache prepares a
visit for each unit before the call, and collects the outputs after it. There are two graphs without breaks, for full
and for cached steps. They read no Python number that differs between blocks or steps, so blocks of a kind share them.
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
    form_of,
    from_rows,
    inputs_as_output,
    is_distributed,
    own_part,
    replicated,
    stream_arguments,
    stream_inputs,
    stream_of,
    to_rows,
    token_dimension,
    whole,
    zero_padding,
)
from relcache.engine.gauge import Gauge
from relcache.engine.patch import Patch
from relcache.engine.state import Visit
from relcache.forecasters.base import within_type
from relcache.models.spec import Unit
from relcache.storage.packing import unpacked


class Runner:
    """Runs one unit, or several if a forward calls its modules several times; `index` is the first unit's."""

    def __init__(self, cache: Cache, index: int, unit: Unit):
        first = next(iter(unit.modules.values()))
        self._cache, self._index, self._name, self._part = cache, index, unit.name, unit.part
        self._compiled = cache.visits[index]  # all that compiled code sees of the cache
        self._streams = stream_arguments(first, unit.part)
        self._first = weakref.ref(first)
        self._form: Any = None  # of the first block's last output

    def attach(self, patch: Patch, unit: Unit) -> None:
        """Replace the forwards of the unit's modules."""
        modules = list(unit.modules.values())
        for position, module in enumerate(modules):
            patch.swap_call(module, self._replacement(position, module, is_last=position == len(modules) - 1))

    def _replacement(self, position: int, module: nn.Module, is_last: bool) -> Callable[..., Any]:
        """Return the replacement for the forward of one module of the unit."""
        is_run = self._part.run
        streams = stream_arguments(module, self._part) if is_run else []

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            compiling = torch.compiler.is_compiling()
            if not (self._compiled.active if compiling else self._cache.is_active):
                return original(*args, **kwargs)
            visit: Visit | None
            if position == 0:
                visit = self._open(compiling, is_last, original, args, kwargs)
            else:
                visit = self._compiled if compiling else self._cache.open_visit(self._index, is_last)
            if visit is None or not visit.opened:
                if is_run:  # this call omitted the first block
                    return original(*args, **kwargs)
                raise RuntimeError(
                    f"the modules of {self._name} were called twice, or in another order than in the spec: the first "
                    "entry comes first, the exit last"
                )
            if is_last:
                return self._close(compiling, visit, original, args, kwargs)
            if visit.skip:
                empty = visit.empties[position]
                return inputs_as_output(empty, self._part, stream_inputs(streams, args, kwargs)) if is_run else empty
            output = original(*args, **kwargs)
            if position == 0 and is_run and not compiling:
                self._form = form_of(output)
            visit.empties[position] = form_of(output) if is_run else self._without_tokens(output)
            return output

        return forward

    def _open(
        self,
        compiling: bool,
        is_last: bool,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Visit:
        """Begin the unit: find out whether it is skipped, and forecast at once, before others overwrite its inputs."""
        passed = [
            None if value is None else own_part(value.detach()) for value in stream_inputs(self._streams, args, kwargs)
        ]
        if compiling:
            visit = self._compiled
            visit.twice, visit.opened = visit.opened, True
            assert visit.forecaster is not None
            keeps = visit.forecaster.keeps_input or self._part.residual
            if keeps and not visit.skip:  # read after the call, when others may have overwritten them
                passed = [None if value is None else value.clone() for value in passed]
            inputs = [None if value is None else to_rows(value, self._part.layout, visit.rows) for value in passed]
            visit.inputs = None if visit.skip else inputs
        else:
            visit, inputs = self._cache.open_unit(
                self._index, passed, lambda gauge: self._run_up(gauge, original, args, kwargs), stays_open=not is_last
            )
            visit.anchor = _wants_gradient(args, kwargs)
        if visit.skip:
            visit.output = self._forecast(compiling, visit, inputs)
            if visit.codes and not compiling:
                self._cache.count(visit.codes)
        return visit

    def _run_up(
        self, gauge: Gauge, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Run the unit's first module up to the gauge."""
        module = self._first()
        assert module is not None
        gauge.run_up(module, original, args, kwargs, self._unchanged)

    def _unchanged(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the first block's inputs as its output: the substitute where a gauge interrupts the block."""
        return inputs_as_output(self._form, self._part, stream_inputs(self._streams, args, kwargs))

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
            return _without_gradient(replicated(forecast, visit.mesh), visit.anchor)
        output = original(*args, **kwargs)
        if is_distributed(output):
            output, visit.mesh = whole(output), output.device_mesh
        own = own_part(output)
        if compiling:
            visit.output = tree_map_only(Tensor, lambda t: t.detach().clone(), own)  # others may overwrite it
            return output
        self._cache.keep(visit, own)
        if self._part.residual and not self._part.run:
            self._form = form_of(output)
        return output

    def _forecast(self, compiling: bool, visit: Visit, inputs: list[Tensor | None]) -> Any:
        """Return the forecast output of a skipped unit, in the form of its last output."""
        part, coefficients = self._part, visit.coefficients
        numbers = list(coefficients.unbind(0)) if isinstance(coefficients, Tensor) else coefficients
        forecaster = visit.forecaster
        assert forecaster is not None
        forecast = forecaster.forecast_far if visit.far else forecaster.forecast
        outputs, codes = [], []
        for stream in visit.streams:
            input = stream_of(inputs, stream.source)
            read = zero_padding(input, stream.valid) if forecaster.reads_input else input
            state = unpacked(stream.state) if compiling else self._cache.store.get(stream.state)
            output, code = forecast(state, numbers, read)
            codes.append(code)
            if part.residual:
                output, code = within_type(input + output)
                codes.append(code)
            elif not numbers:
                output = output.clone()  # a view of the cache, which the caller may overwrite
            outputs.append(from_rows(output, part.layout))
        visit.codes = [code for code in codes if code is not None]
        if visit.form is None:
            return outputs[0]
        return tuple(None if index is None else outputs[index] for index in visit.form)

    def _without_tokens(self, output: Any) -> Any:
        dimension = token_dimension(self._part)
        return tree_map_only(Tensor, lambda t: t.detach().narrow(dimension, 0, 0).clone(), output)


class _NoGradient(torch.autograd.Function):
    """Passes features through, and refuses gradients."""

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
    """Return the first tensor among the arguments that requires a gradient; None if there is none."""
    if not torch.is_grad_enabled():
        return None
    tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return next((tensor for tensor in tensors if tensor.requires_grad), None)


def _without_gradient(output: Any, anchor: Tensor | None) -> Any:
    """Return `output`, changed to raise an error if a gradient flows from it back to `anchor`."""
    if anchor is None:
        return output
    return tree_map_only(Tensor, lambda features: _NoGradient.apply(features, anchor), output)
