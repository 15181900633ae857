"""A transformer of one module that returns what a test has written down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import relcache
from relcache import Method, ModelSpec


class Scripted(nn.Module):
    """Returns what a test has written down for each step, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.present: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        assert self.present is not None
        return self.present


class ScriptedTransformer(nn.Module):
    """A transformer of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Scripted()])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return self.blocks[0](hidden_states)


SPEC = ModelSpec("ScriptedTransformer", ("blocks.*",))


def play(
    method: Method, inputs: list[Tensor], outputs: list[Tensor], steps: int | None = None
) -> tuple[list[Tensor], relcache.Report]:
    """Outputs of the transformer whose module gets `inputs` and, where it is computed, returns `outputs`."""
    model = ScriptedTransformer().eval()
    handle = relcache.enable(model, method, spec=SPEC, num_inference_steps=steps)
    got, timesteps = [], 1000.0 - torch.arange(len(inputs))  # one table: the samples may move as far as they like
    with torch.no_grad():
        for step, (given, output) in enumerate(zip(inputs, outputs, strict=True)):
            model.blocks[0].present = output
            got.append(model(given, timesteps[step].reshape(1)))
    return got, handle.report()


def rows(*values: float) -> Tensor:
    """A batch of features with these values, four entries each."""
    return torch.tensor(values)[:, None].expand(-1, 4).clone()
