"""Small stand-ins of the models and schedulers that engines have, for the tests of their packages."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A block of FLUX that joins its streams. An engine's block calls `mixed` from its own signature."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.text = nn.Linear(8, 8), nn.Linear(8, 8)

    def mixed(self, features: Tensor, text: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        """Return text (batch, tokens, 8) and features (batch, tokens, 8), in the order of diffusers."""
        mean = text.mean(1, keepdim=True)
        return text + self.text(temb), features + self.mix(features + mean + temb).tanh()


class Flux(nn.Module):
    """FLUX's two lists of blocks. An engine's model calls `run` from its own signature."""

    block: ClassVar[type[Block]]

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(self.block() for _ in range(2))
        self.single_transformer_blocks = nn.ModuleList(self.block() for _ in range(2))

    def run(self, features: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
        """Return features (batch, tokens, 8); `timestep` has shape (batch,), from 0 to 1000."""
        temb = timestep_features(timestep)
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            text, features = block(hidden_states=features, encoder_hidden_states=text, temb=temb)
        return features


def timestep_features(timestep: Tensor) -> Tensor:
    """Return smooth features (batch, 1, 8) of timesteps (batch,) from 0 to 1000."""
    return (timestep.view(-1, 1, 1) / 1000 * torch.arange(1.0, 9)).cos()


class Euler:
    """Euler's updates, called as engines call their schedulers."""

    def set_timesteps(self, steps: int) -> None:
        """Begin a loop of so many steps."""
        self.sigmas = torch.linspace(1, 0, steps + 1)
        self.timesteps, self.step_index = 1000 * self.sigmas[:-1], 0

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        """Return the next sample, (batch, …)."""
        self.step_index += 1
        return (sample + model_output * (self.sigmas[self.step_index] - self.sigmas[self.step_index - 1]),)
