"""One sampling: the wrappers that ComfyUI calls around it, around each prediction and around each call of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import relcache

from .models import SPECS, spec_of

log = logging.getLogger("relcache")

FORECASTERS: dict[str, Any] = {
    "default": None,
    "reuse": relcache.Reuse(),
    "taylor, order 1": relcache.Taylor(1),
    "taylor, order 2": relcache.Taylor(2),
    "relational, order 1": relcache.Relational(1),
    "relational, order 2": relcache.Relational(2),
}
CORRECTED = ("sample_euler",)
CALLED_ONCE = (
    *CORRECTED, "sample_euler_ancestral", "sample_lms", "sample_dpmpp_2m", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde",
    "sample_ddpm", "sample_lcm", "sample_ipndm", "sample_ipndm_v", "sample_deis", "sample_res_multistep",
    "sample_gradient_estimation", "sample_er_sde", "sample_dpmpp_2m_sde_gpu", "sample_dpmpp_3m_sde_gpu",
    "sample_res_multistep_ancestral", "sample_unipc", "sample_unipc_bh2", "sample_sa_solver",
    "sample_dpmpp_2m_sde_heun", "sample_dpmpp_2m_sde_heun_gpu", "sample_euler_cfg_pp", "sample_euler_ancestral_cfg_pp",
    "sample_dpmpp_2m_cfg_pp", "sample_res_multistep_cfg_pp", "sample_res_multistep_ancestral_cfg_pp",
    "sample_gradient_estimation_cfg_pp",
)  # fmt: skip
COMPILED = "torch.compile"  # the key of the node TorchCompileModel
FULL, CACHED = "■", "□"


class Euler:
    """Euler's updates as a scheduler of relcache's: it corrects gaps where a scheduler's `step` is called.

    Args:
        sigmas: noise levels, (steps + 1,).
        timesteps: the model's timesteps at them, (steps,).
        kind: the quantity that the model predicts, as diffusers names it.
    """

    def __init__(self, sigmas: Tensor, timesteps: Tensor, kind: str):
        self.sigmas, self.timesteps, self.step_index = sigmas, timesteps, 0
        self.config = SimpleNamespace(prediction_type=kind)

    def to(self, device: torch.device) -> None:
        """Move the tables to the device of the sample: divisions there round as ComfyUI's own."""
        if self.sigmas.device != device:
            self.sigmas, self.timesteps = self.sigmas.to(device), self.timesteps.to(device)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor]:
        """Return the sample at the next noise level, (batch, …), from the slope `model_output`."""
        width = self.sigmas[self.step_index + 1] - self.sigmas[self.step_index]
        self.step_index += 1
        return (sample + model_output * width,)


class Sampling:
    """The settings of a node, and the sampling that is going on."""

    def __init__(self, full_steps: int, forecaster: str, correction: bool, node: str | None):
        self._full_steps, self._forecaster = full_steps, FORECASTERS[forecaster]
        self._correction, self._node = correction, node
        self._handle: relcache.Handle | None = None
        self._euler: Euler | None = None

    def sample(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Enable relcache for one sampling, which calls `executor` with ComfyUI's own arguments."""
        guider, (sampler, sigmas) = executor.class_obj, args[2:4]
        patcher = guider.model_patcher
        model = patcher.get_model_object("diffusion_model")
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
        problem = self._problem(patcher, model, name, len(sigmas) - 1)
        if problem is not None:
            self._tell(f"relcache is off: {problem}")
            return executor(*args, **kwargs)
        earlier = self._handle, self._euler
        corrects = self._correction and name in CORRECTED and not _is_churned(sampler)
        try:
            handle = self._begin(model, patcher.get_model_object("model_sampling"), sigmas, corrects)
            with handle.request():
                return executor(*args, **kwargs)
        finally:  # an interrupt is no Exception
            if self._handle is not None:
                self._tell(self._summary(len(sigmas) - 1, corrects))
                self._handle.disable()
            self._handle, self._euler = earlier

    def _problem(self, patcher: Any, model: Any, sampler: str, steps: int) -> str | None:
        """Return why a sampling cannot be cached; None if it can."""
        if COMPILED in getattr(patcher, "wrappers", {}).get("apply_model", {}):
            return "the model is compiled by TorchCompileModel"
        if spec_of(model) is None:
            return f"it knows {', '.join(SPECS)}, and this model is a {type(model).__name__}"
        if sampler not in CALLED_ONCE:
            return f"the sampler {sampler.removeprefix('sample_')} may call the model several times in a step"
        return "there is nothing to skip" if steps <= self._full_steps else None

    def _begin(self, model: Any, model_sampling: Any, sigmas: Tensor, corrects: bool) -> relcache.Handle:
        is_flow = any(kind.__name__ == "CONST" for kind in type(model_sampling).__mro__)
        timesteps = model_sampling.timestep(sigmas[:-1]).float()
        self._euler = Euler(sigmas.clone(), timesteps, "flow_prediction" if is_flow else "epsilon")
        self._handle = relcache.enable(
            model,
            forecaster=self._forecaster,
            full_steps=self._full_steps,
            corrector="replay" if corrects else "none",
            spec=spec_of(model),
            granularity="module",  # the spec's own units, which are lists of blocks
            scheduler=self._euler,
        )
        return self._handle

    def call(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the model for a batch of prompts, which name the guidance branch."""
        if self._handle is None:
            return executor(*args, **kwargs)
        options = kwargs.get("transformer_options")
        if options is None:
            options = next((value for value in reversed(args) if isinstance(value, dict)), {})
        prompts = zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False)
        with self._handle.branch(" ".join(f"{kind}:{uuid}" for kind, uuid in prompts)):
            return executor(*args, **kwargs)

    def predict(self, executor: Callable[..., Any], x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the clean sample, (batch, …); at a full step the one that makes Euler's update the corrected one."""
        euler = self._euler
        if euler is not None:
            euler.to(x.device)
        clean = executor(x, timestep, *args, **kwargs)
        if euler is None or not isinstance(clean, Tensor) or euler.step_index >= len(euler.timesteps):
            return clean
        index = euler.step_index
        sigma, after = euler.sigmas[index], euler.sigmas[index + 1]
        slope = (x - clean) / sigma
        plain = x + slope * (after - sigma)
        (corrected,) = euler.step(slope, euler.timesteps[index], x)
        if corrected.equal(plain):
            return clean
        return x - sigma * (corrected - x) / (after - sigma)

    def _summary(self, steps: int, corrects: bool) -> str:
        assert self._handle is not None
        full = set(self._handle.full_steps)
        marks = "".join(FULL if step in full else CACHED for step in range(steps))
        told = [f"corrected at {len(self._handle.corrections)} of them"] if corrects else self._handle.notes
        if self._correction and not corrects:
            told = ["not corrected: the sampler is not plain Euler", *told]
        elif corrects:
            told += self._handle.notes
        return "; ".join([f"relcache: {len(full)} of {steps} steps full {marks}", *told])

    def _tell(self, text: str) -> None:
        """Show a text in the log, and under the node."""
        log.info(text)
        with suppress(Exception):
            from server import PromptServer  # of ComfyUI

            PromptServer.instance.send_progress_text(text, self._node)


def _is_churned(sampler: Any) -> bool:
    """Return whether the sampler adds noise between its steps."""
    return bool(getattr(sampler, "extra_options", {}).get("s_churn"))
