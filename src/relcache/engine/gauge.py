"""Read the input of a model's first module, from which an error-driven schedule decides.

Knows specs and the patch, nothing of schedules and errors.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from relcache.engine.features import Argument, stream_arguments, stream_inputs, to_rows
from relcache.engine.halt import Substitute, run_until
from relcache.engine.patch import Patch
from relcache.models.spec import Part


class Gauge:
    """Records the input of one module.

    The first module's input is normalised and modulated by the timestep, unlike the input of a block. Its error is
    therefore the better guide for full steps. If a skipped block contains the module, `run_up` runs the model up to it.
    """

    def __init__(self, part: Part):
        self._part = part
        self.name = f"{part.pattern}:{(part.streams or ('',))[0]}"  # of the recorded stream
        self._stream: list[Argument] = []
        self._input: Tensor | None = None  # a copy; after `run_up` the tensor itself
        self._around: list[weakref.ref[nn.Module]] = []  # from the model down to the module
        self._reads = False  # whether a cached call is in progress

    def attach(self, patch: Patch, around: Sequence[nn.Module]) -> None:
        """Read the input of the last of `around`: the modules from the model down to the one to read."""
        module = around[-1]
        self._around = [weakref.ref(outer) for outer in around]
        self._stream = stream_arguments(module, self._part)[:1]
        patch.swap_call(module, self._call)

    def _call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._reads:
            self._input = stream_inputs(self._stream, args, kwargs)[0]
            if self._input is not None:
                self._input = self._input.detach().clone()
        return original(*args, **kwargs)

    def open(self) -> None:
        """Start reading in a new call."""
        self._reads, self._input = True, None

    def close(self) -> None:
        """Stop reading, and drop the input."""
        self._reads, self._input = False, None

    def features(self, rows: int) -> Tensor | None:
        """Return the module's input in this call, (rows, tokens, channels); None before the module is called."""
        return None if self._input is None else to_rows(self._input.detach(), self._part.layout, rows)

    @torch.no_grad()
    def run_up(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        substitute: Substitute | None = None,
    ) -> None:
        """Run the forward of `module`, uncompiled, until it calls the module to read.

        Args:
            module: the model, or a block around the module to read.
            substitute: as in `run_until`.
        """
        around = [outer for reference in self._around if (outer := reference()) is not None]
        depth = next((depth for depth, outer in enumerate(around) if outer is module), len(around) - 1)
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        with eager:
            run_until(around[depth:], lambda: forward(*args, **kwargs), self._read, substitute)

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._input = stream_inputs(self._stream, args, kwargs)[0]
