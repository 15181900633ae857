"""Units inside compiled code: what `Runner` does, written so that torch.compile makes two graphs of it and breaks none.

A compiled model cannot ask whether a step is full: the cache decides before the call. Then the graph of a full step
runs the units and leaves their inputs and outputs on a `Slot` each, and that of a cached step finds states and
coefficients there. Nothing that differs from step to step or from block to block is a Python number, so that no graph
has to be made anew. Knows specs and forecasters; of steps and requests nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from relcache.engine.features import (
    Place,
    counted,
    form_of,
    from_rows,
    given_streams,
    handed_on,
    stream_places,
    to_rows,
    token_dimension,
)
from relcache.forecasters.base import Forecaster, within_type
from relcache.models.spec import Unit
from relcache.storage.packing import unpacked


@dataclass
class Pace:
    """What all units of a model are told about the present call: whether it is to be cached, whether it is skipped, its
    samples, and whether a forecast may stray."""

    active: bool = False
    skip: bool = False
    rows: int = 1
    far: bool = False


@dataclass
class Slot:
    """What passes between one unit's compiled code and the cache, in one call.

    Attributes:
        states, sources: of each stream the forecaster's state and the place of its input; None where there is no
            history, and the unit is computed.
        valid: of each stream which tokens count, as of `Stream`.
        coefficients: of the forecast, (order,).
        form: as `Cell.form`.
        empties: as `Cell.empties`.
        inputs, output: of a unit that was computed.
        forecast: the output of one that is skipped, until its last module is called.
        codes: of the forecasts' fall-backs.
        visited: whether the unit was skipped.
        opened, twice: whether its first module was called, and whether it was more than once.
    """

    states: tuple[Any, ...] | None = None
    sources: tuple[int, ...] = ()
    valid: tuple[Tensor | None, ...] = ()
    coefficients: Tensor | None = None
    form: list[int | None] | None = None
    empties: dict[int, Any] = field(default_factory=dict)
    inputs: list[Tensor | None] | None = None
    output: Any = None
    forecast: Any = None
    codes: list[Tensor] = field(default_factory=list)
    visited: bool = False
    opened: bool = False
    twice: bool = False

    @property
    def lent(self) -> list[Tensor]:
        """What a unit that was computed was given and has returned, which is kept until the call ends."""
        return [leaf for leaf in tree_leaves((self.inputs, self.output)) if isinstance(leaf, Tensor)]

    def clear(self) -> None:
        """Keep nothing of the call."""
        self.states = self.coefficients = self.inputs = self.output = self.forecast = None
        self.codes, self.empties = [], {}
        self.visited = self.opened = self.twice = False


class CompiledRunner:
    """One unit as compiled code sees it."""

    def __init__(self, pace: Pace, slot: Slot, unit: Unit, forecaster: Forecaster):
        self._pace, self._slot, self._part = pace, slot, unit.part
        self._forecaster = forecaster
        self._streams = stream_places(next(iter(unit.modules.values())), unit.part)
        self._tokens = token_dimension(unit.part)
        self._holds = forecaster.keeps_input or unit.part.residual

    def whole(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A unit of one module."""
        if not self._pace.active:
            return original(*args, **kwargs)
        self._open(args, kwargs)
        return self._close(original, args, kwargs)

    def entry(self, place: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first or a middle module of a parallel unit."""
        if not self._pace.active:
            return original(*args, **kwargs)
        if place == 0:
            self._open(args, kwargs)
        if self._skips:
            return self._slot.empties[place]
        output = original(*args, **kwargs)
        self._slot.empties[place] = tree_map_only(Tensor, lambda t: t.narrow(self._tokens, 0, 0).clone(), output)
        return output

    def exit(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The last module of a parallel unit."""
        if not self._pace.active:
            return original(*args, **kwargs)
        return self._close(original, args, kwargs)

    def block(
        self,
        place: int,
        streams: list[Place],
        is_last: bool,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """One block of a run."""
        if not self._pace.active:
            return original(*args, **kwargs)
        if place == 0:
            self._open(args, kwargs)
        if not self._slot.opened:  # the first block was left out of this call
            return original(*args, **kwargs)
        if is_last:
            return self._close(original, args, kwargs)
        if self._skips:
            return handed_on(self._slot.empties[place], self._part, given_streams(streams, args, kwargs))
        output = original(*args, **kwargs)
        self._slot.empties[place] = form_of(output)
        return output

    @property
    def _skips(self) -> bool:
        return self._pace.skip and self._slot.states is not None

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._slot.twice = self._slot.twice or self._slot.opened
        self._slot.opened = True
        given = [None if value is None else value.detach() for value in given_streams(self._streams, args, kwargs)]
        if self._holds and not self._skips:  # until the call's end, when others may have written into them
            given = [None if value is None else value.clone() for value in given]
        inputs = [None if value is None else to_rows(value, self._part.layout, self._pace.rows) for value in given]
        if self._skips:
            self._slot.forecast = self._forecast(inputs)
        else:
            self._slot.inputs = inputs

    def _close(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        slot = self._slot
        if self._skips:
            forecast, slot.forecast = slot.forecast, None
            slot.visited = True
            return forecast
        output = original(*args, **kwargs)
        slot.output = tree_map_only(Tensor, lambda t: t.detach().clone(), output)  # others may write into it
        return output

    def _forecast(self, inputs: list[Tensor | None]) -> Any:
        slot, part = self._slot, self._part
        assert slot.states is not None
        coefficients = [] if slot.coefficients is None else list(slot.coefficients.unbind(0))
        far = not self._forecaster.bounded_when_compiled and self._pace.far
        make = self._forecaster.forecast_far if far else self._forecaster.forecast
        outputs: list[Tensor] = []
        codes: list[Tensor] = []
        for state, source, valid in zip(slot.states, slot.sources, slot.valid, strict=True):
            input = inputs[source]
            assert input is not None
            read = counted(input, valid) if self._forecaster.reads_input else input
            output, code = make(unpacked(state), coefficients, read)
            held = None
            if part.residual:
                output, held = within_type(input + output)
            codes += [known for known in (code, held) if known is not None]
            outputs.append(from_rows(output if coefficients else output.clone(), part.layout))
        slot.codes = codes
        if slot.form is None:
            return outputs[0]
        return tuple(None if place is None else outputs[place] for place in slot.form)


def coefficients_on(values: list[float], order: int, device: torch.device) -> Tensor | None:
    """Coefficients as a tensor of as many as the order has, zeros where the history does not reach."""
    if not order:
        return None
    numbers = values + [0.0] * (order - len(values))
    # filled one by one, as the device would wait for a copy
    return torch.stack([torch.full((), number, dtype=torch.float32, device=device) for number in numbers])
