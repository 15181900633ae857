"""No cache: solvers of diffusers with fewer steps, in place of the pipeline's own scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar

from relcache.bench.rivals.base import Options, Rival

NONE: Mapping[str, Any] = {}
LAST_SIGMA = 1e-3


@dataclass(frozen=True)
class Solver(Rival):
    """A scheduler of diffusers with fewer steps; the pipeline's own one if it names none.

    Attributes:
        scheduler: class in diffusers; "" for the pipeline's own.
        flow: the class in flow matching, if it has another name there; "" for the same name.
        options: options of either class.
        calls: calls of the transformer in each step but the last, which has one.
        only: "flow" or "noise", the one prediction that it is meant for; "" for both.
    """

    scheduler: str = ""
    flow: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    only: str = ""
    source: ClassVar[str] = "diffusers.schedulers"
    group: ClassVar[str] = "solver"
    budget: ClassVar[str] = "steps"

    def steps(self, calls: int) -> int:
        """Return the steps that take `calls` calls of the transformer, or one call less."""
        return (calls - 1) // self.calls + 1

    def targets(self, asked: Sequence[int], steps: int) -> Sequence[int]:
        """Return the numbers asked for, those midway between them, and one above: a cache takes longer than its number.

        So a solver is seen near the time of any cache, and little is left to interpolation.
        """
        ordered = sorted(asked)
        more = {round(1.25 * ordered[-1]), *((low + high) // 2 for low, high in pairwise(ordered))}
        return [*asked, *sorted({nfc for nfc in more if nfc <= steps}.difference(asked), reverse=True)]

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        own = pipeline_or_model.scheduler
        pipeline_or_model.scheduler = self.made(own)
        try:
            yield
        finally:
            pipeline_or_model.scheduler = own

    def made(self, own: Any) -> Any:
        """Return the solver for a pipeline whose own scheduler is `own`.

        It takes over the noise schedule, but not spacing "leading", DDIM's default, which begins too late at few steps.
        """
        import diffusers

        from relcache.bench.rivals.heun import FlowHeun, UnitHeun

        flow = is_flow(own)
        config = {key: value for key, value in own.config.items() if (key, value) != ("timestep_spacing", "leading")}
        if not self.scheduler:
            return type(own).from_config(own.config, **self.options)
        if self.calls == 2:
            return FlowHeun(own) if flow else UnitHeun.from_config(config, **self.options)
        kind = table_free(getattr(diffusers, self.flow if flow and self.flow else self.scheduler))
        shift = {"flow_shift": own.config.get("shift", 1.0)}
        of_flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **shift}
        return kind.from_config(config, **(of_flow if flow else NONE), **self.options)

    def unfit(self, pipeline_or_model: Any) -> str:
        own = getattr(pipeline_or_model, "scheduler", None)
        if own is None:
            return "a solver needs a pipeline, not a bare transformer"
        prediction = own.config.get("prediction_type", "velocity" if is_flow(own) else "epsilon")
        if prediction not in ("epsilon", "velocity", "flow_prediction", "v_prediction"):
            return f"the model predicts {prediction!r}, for which it was not tried"
        if self.options.get("use_beta_sigmas") and find_spec("scipy") is None:
            return 'beta sigmas need scipy: pip install "relcache[peers]"'
        if self.only and (self.only == "flow") != is_flow(own):
            return f"it is meant for models that predict {'velocity' if self.only == 'flow' else 'noise'}"
        return ""


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is of flow matching: it has no noise schedule of a diffusion."""
    return not hasattr(scheduler, "alphas_cumprod")


def table_free(kind: type[Any]) -> type[Any]:
    """Return a solver whose `set_timesteps` accepts a pipeline's own table of sigmas, and uses the solver's.

    Some pipelines pass their table always, and some solvers take none. In flow matching DEIS of diffusers 0.42 repeats
    the last sigma and so keeps the last noise; here it ends near 0, as at 0 it divides by it.
    """

    class TableFree(kind):
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
        ) -> None:
            number = num_inference_steps if num_inference_steps is not None else len(sigmas)
            super().set_timesteps(number, device, **({} if mu is None else {"mu": mu}))
            if self.config.get("use_flow_sigmas") and self.sigmas[-1] == self.sigmas[-2]:
                self.sigmas[-1] = LAST_SIGMA

    TableFree.__name__ = kind.__name__
    return TableFree


MULTISTEP = "DPMSolverMultistepScheduler"
SOLVERS = (
    Solver("fewer-steps", "no cache: the same scheduler"),
    Solver("fewer-steps-beta", "no cache: the same, beta sigmas", options={"use_beta_sigmas": True}, only="flow"),
    Solver("fewer-steps-karras", "no cache: the same, Karras sigmas", options={"use_karras_sigmas": True}, only="flow"),
    Solver("unipc", "no cache: UniPC", "UniPCMultistepScheduler"),
    Solver("dpm-2m", "no cache: DPM-Solver++ 2M", MULTISTEP, options={"solver_order": 2}),
    Solver("dpm-3m", "no cache: DPM-Solver++ 3M", MULTISTEP, options={"solver_order": 3}),
    Solver(
        "dpm-2m-karras", "no cache: DPM-Solver++ 2M, Karras sigmas", MULTISTEP,
        options={"solver_order": 2, "use_karras_sigmas": True}, only="noise",
    ),
    Solver(
        "dpm-2m-beta", "no cache: DPM-Solver++ 2M, beta sigmas", MULTISTEP,
        options={"solver_order": 2, "use_beta_sigmas": True}, only="noise",
    ),
    Solver("deis", "no cache: DEIS", "DEISMultistepScheduler"),
    Solver("heun", "no cache: Heun", "HeunDiscreteScheduler", options={"use_karras_sigmas": True}, calls=2),
)  # fmt: skip
