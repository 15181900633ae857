"""An equation: a published method, written from its paper's equations as a relcache method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from relcache.api import Handle, enable
from relcache.bench.rivals.base import Options, Rival
from relcache.method import Method


class Equation(Rival):
    """A published method, written from its paper's equations.

    Its docstring names the source, and each place where the public material is silent ("our reading"). No code is
    copied. The forecasters and schedules are no part of relcache's public names.
    """

    group: ClassVar[str] = "equations"
    budget: ClassVar[str] = "full_steps"

    @abstractmethod
    def method(self, options: Options, steps: int) -> Method:
        """Return the method for runs of `steps` steps.

        Raises:
            ValueError: the options lack what `calibrate` returns.
        """

    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Handle:
        bare = isinstance(pipeline_or_model, nn.Module)  # a pipeline's scheduler knows the number of steps
        return enable(pipeline_or_model, self.method(options, steps), num_inference_steps=steps if bare else None)


def plan_of(options: Options, steps: int) -> list[int]:
    """Return the calibrated plan with the number of full steps in `options`.

    Raises:
        ValueError: there is no such plan.
    """
    wanted = int(options["full_steps"])
    if wanted >= steps:
        return list(range(steps))
    plans: Sequence[Sequence[int]] = options.get("plans", ())
    longest = max(map(len, plans), default=0)  # that of all steps
    for plan in plans:
        if len(plan) == wanted and longest == steps:
            return list(plan)
    known = f"the plans are for {longest} steps" if plans else "there are no plans"
    raise ValueError(
        f"no plan has {wanted} of {steps} full steps: {known}. Use other full_steps, or call calibrate first"
    )
