"""Muon (Jordan et al., 2024) in float32, which orthogonalises all matrices of one shape together.

This suits narrow models. `torch.optim.Muon` computes in bfloat16 and one matrix at a time, both slow on a CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Replace each of the matrices (n, rows, columns), U S V^T by singular values, by about U V^T."""
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic of the published method
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates of each matrix, scaled to the root mean square of an Adam step.

    A convolution's kernels count as a matrix with a row for each output channel.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(parameter.grad, state["momentum"], group["momentum"]))  # Nesterov
                steps = orthogonalised(torch.stack(updates).flatten(2))
                scale = 0.2 * max(steps.shape[1:]) ** 0.5 * group["lr"]
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.reshape(shape), alpha=-scale)
