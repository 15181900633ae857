"""Where an error-driven schedule reads: the input of a model's first module, whatever the units are.

Knows specs and the patch; of schedules and errors nothing.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from relcache.engine.features import Argument, stream_arguments, streams_given, to_rows
from relcache.engine.halt import StandIn, run_until
from relcache.engine.patch import Patch
from relcache.models.spec import Part


class Gauge:
    """Stands before one module and remembers the features that it is given.

    That module's input has been normalised and modulated by the timestep, which a block's has not: its error tells far
    better when to compute in full. Where the module is skipped with its block, `run_up` runs the model up to it.
    """

    def __init__(self, part: Part):
        self._part = part
        self.name = f"{part.pattern}:{(part.streams or ('',))[0]}"  # of the stream that it reads
        self._stream: list[Argument] = []
        self._seen: Tensor | None = None  # a copy, unless nothing but reading it comes after
        self._around: list[weakref.ref[nn.Module]] = []  # the model, what the module lies in, and the module
        self.listens = False  # whether a call is in progress whose features are wanted

    def attach(self, patch: Patch, around: Sequence[nn.Module]) -> None:
        """Stand before the forward of the last of `around`, of the part that the gauge was made for.

        `around` are the model, what the module lies in, outermost first, and the module itself.
        """
        module = around[-1]
        self._around = [weakref.ref(outer) for outer in around]
        self._stream = stream_arguments(module, self._part)[:1]
        patch.swap_call(module, self._call)

    def _call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.listens:
            self._seen = streams_given(self._stream, args, kwargs)[0]
            if self._seen is not None:
                self._seen = self._seen.detach().clone()
        return original(*args, **kwargs)

    def open(self) -> None:
        """A call begins."""
        self.listens, self._seen = True, None

    def close(self) -> None:
        """It has ended."""
        self.listens, self._seen = False, None

    def features(self, rows: int) -> Tensor | None:
        """What the module was given in the present call, batch of `rows` first; None if it was not reached yet."""
        return None if self._seen is None else to_rows(self._seen.detach(), self._part.layout, rows)

    @torch.no_grad()
    def run_up(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        stand_in: StandIn | None = None,
    ) -> None:
        """Run `forward`, which is of `module`, until it calls the gauge's own, without what is compiled in it.

        Args:
            module: the model, or a block that the gauge's module lies in.
            stand_in: as in `run_until`.
        """
        around = [outer for reference in self._around if (outer := reference()) is not None]
        place = next((place for place, outer in enumerate(around) if outer is module), len(around) - 1)
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        with eager:
            run_until(around[place:], lambda: forward(*args, **kwargs), self._see, stand_in)

    def _see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen = streams_given(self._stream, args, kwargs)[0]
