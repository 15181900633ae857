"""The families in the test table: one file each, with a small configuration of the real diffusers class.

A file has one `FAMILY`, or several in `FAMILIES`. `test_families.py` tests them all.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from relcache.models import SPECS, ModelSpec, Size

VIDEO = Size(batch=2, height=4, width=6, frames=3, text=5)
VIDEO_OF_IMAGE = Size(
    batch=2, height=4, width=6, frames=3, text=512
)  # Wan takes all but the last 512 tokens for the image


@dataclass(frozen=True)
class Family:
    """A small model of one class.

    Attributes:
        class_name: name of the class in diffusers.
        config: its arguments.
        units: number of its units, counted by hand from the configuration.
        size: size of the call that the spec's `inputs` makes.
        alter: changes the inputs that the spec makes, if this configuration needs others.
        batch_axis: dimension of an argument that is the batch, None if none is; 0 for the other arguments.
        variant: name that tells several configurations of one class apart.
    """

    class_name: str
    config: dict[str, Any]
    units: int
    size: Size = field(default=Size(batch=2, height=4, width=6, frames=1, text=5))
    alter: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: inputs
    batch_axis: dict[str, int | None] = field(default_factory=dict)
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.class_name}{f'-{self.variant}' if self.variant else ''}"

    @property
    def spec(self) -> ModelSpec:
        return next(spec for spec in SPECS if spec.class_name == self.class_name)

    def model(self, seed: int = 0) -> nn.Module:
        """Return the model with random weights, none of them zero, through which features keep about the same size."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(diffusers, self.class_name)(**self.config)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.ndim < 2:
                        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                        parameter.normal_(centre, 0.1)
                    else:
                        parameter.normal_(0, parameter[0].numel() ** -0.5)
        return model.eval().requires_grad_(False)

    def inputs(self, model: nn.Module, seed: int = 0) -> dict[str, Any]:
        """Return the arguments of one forward."""
        assert self.spec.inputs is not None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.alter(self.spec.inputs(model.config, self.size))


def along(family: Family, model: nn.Module, steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the arguments of `steps` forwards whose sample and timestep change smoothly."""
    start, end = family.inputs(model, seed), family.inputs(model, seed + 1)
    sample = family.spec.sample or first_argument(model)
    runs = family.spec.time_runs
    calls = []
    for step in range(steps):
        angle = torch.tensor(0.05 * step + 0.003 * step**2)

        def mix(left: Any, right: Any, angle: Tensor = angle) -> Any:
            if isinstance(left, (list, tuple)):
                return type(left)(mix(*pair) for pair in zip(left, right, strict=True))
            return torch.cos(angle) * left + torch.sin(angle) * right if left.is_floating_point() else left

        def move(timestep: Tensor, step: int = step) -> Tensor:
            if not timestep.is_floating_point():
                return timestep + runs * step
            return timestep + runs * step * 0.002 * timestep.abs().max()

        call = dict(start)
        call[sample] = mix(start[sample], end[sample])
        call[family.spec.timestep] = tree_map_only(Tensor, move, start[family.spec.timestep])
        calls.append(call)
    return calls


def first_argument(model: nn.Module) -> str:
    return list(inspect.signature(type(model).forward).parameters)[1]


def _collect() -> list[Family]:
    families: list[Family] = []
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        families += getattr(module, "FAMILIES", None) or [module.FAMILY]
    return families


FAMILIES: list[Family] = _collect()
