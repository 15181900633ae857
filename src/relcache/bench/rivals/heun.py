"""Heun's method of diffusers for the pipelines of a race: on a pipeline's own sigmas, and at variance 1."""

from __future__ import annotations

from typing import Any

import diffusers
import torch


class FlowHeun(diffusers.FlowMatchHeunDiscreteScheduler):
    """Heun's method on the table of sigmas of a pipeline's own flow-matching scheduler.

    diffusers' class makes its own table, which knows no shift by the size of the picture. Its options do not apply.
    """

    def __init__(self, own: Any) -> None:
        super().__init__(own.config.num_train_timesteps, own.config.get("shift", 1.0))
        self._own = type(own).from_config(own.config)
        self.register_to_config(use_dynamic_shifting=own.config.get("use_dynamic_shifting", False), **{
            name: own.config[name] for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            if name in own.config
        })  # fmt: skip

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        shift = {} if mu is None else {"mu": mu}
        table = {"sigmas": sigmas} if sigmas is not None else {"num_inference_steps": num_inference_steps}
        self._own.set_timesteps(device=device, **table, **shift)
        sigmas, timesteps = self._own.sigmas, self._own.timesteps
        super().set_timesteps(len(timesteps), device)
        self.timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        self.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])


class UnitHeun(diffusers.HeunDiscreteScheduler):
    """Heun's method for pipelines that begin with noise of variance 1 and keep samples at that variance, as DDIM does.

    diffusers' class works on samples of variance 1 + sigma², and needs the first noise scaled. Sigmas are those of
    Karras et al., who proposed the method: equal steps of time are too long where sigma is large.
    """

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return sample

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        scaled = sample * self._scale()
        previous = super().step(model_output, timestep, scaled, return_dict=False)[0] / self._scale()
        if not return_dict:
            return (previous,)
        return diffusers.schedulers.scheduling_utils.SchedulerOutput(prev_sample=previous)

    def _scale(self) -> torch.Tensor:
        return (1 + self.sigmas[self.step_index] ** 2) ** 0.5
