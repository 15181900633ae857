"""Find the processes that share a model's pictures or weights; they must take the same full steps.

A schedule that follows the error decides by features. Processes may each have some tokens of a picture, some of its
guidance branches, or some of the weights inside skipped modules. If they then decided apart, one would skip while
another waits in a collective, forever. So they decide together, by numbers that all of them have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from relcache.checks import check_choice
from relcache.engine.group import Group
from relcache.engine.wrappers import is_of_class

Shared = Literal["tokens", "guidance", "weights"]
SHARDED, OPAQUE = ("FSDPModule",), ("FullyShardedDataParallel",)
APART = (
    "the processes that share a picture are at different steps: {}. All of them must make the same number of steps in "
    "the same order, each of the same size"
)
NO_LIMIT = (
    "processes that share weights would each choose by its own memory_limit, and might differ: pass granularity=, "
    "cache_dtype= and offload= instead"
)
MAY_SHARE = (
    "relcache: torch.distributed runs with {} processes, and this schedule decides by the features of its own process. "
    "That is right where each makes pictures of its own. If they share one picture in a way that diffusers does not "
    "know, pass group= to relcache.enable: else they may decide differently and wait for each other forever"
)


@dataclass(frozen=True)
class Ranks:
    """Processes that take the same full steps.

    Attributes:
        tokens: they each have some tokens of the same samples.
        guidance: they each have some guidance branches of the same samples; the first process decides.
        weights: they have samples of their own, or the same ones, and each some of the weights; the mean of their
            errors decides. There are several such groups if a mesh has several dimensions.
    """

    tokens: Group | None = None
    guidance: Group | None = None
    weights: tuple[Group, ...] = ()

    @property
    def groups(self) -> list[Group]:
        """All groups; empty if this process decides alone."""
        return [group for group in (self.tokens, self.guidance, *self.weights) if group is not None]

    def sums(self, values: Sequence[Tensor], step: int) -> Sequence[Tensor]:
        """Return sums over the tokens of all processes for each of `values`, (batch,), of one dtype.

        Waits for the other processes, which call this at the same step, and then returns tensors on the CPU.

        Raises:
            RuntimeError: they are at another step, or one of them has failed.
        """
        if self.tokens is None:
            return values
        return _exchanged(self.tokens, torch.stack(list(values)), step).sum(0).unbind(0)

    def agree(self, value: float | Tensor, step: int, device: torch.device) -> float:
        """Return the number that all processes take instead of their own `value`, a scalar. Waits for the device.

        Those that share tokens have the same. `device` is that of the samples; otherwise as `sums`.
        """
        for group in self.groups:
            if group is not self.tokens:
                own = torch.as_tensor(value, device=device, dtype=torch.float64)
                values = _exchanged(group, own, step)
                value = float(values[0] if group is self.guidance else values.mean())
        return float(value)

    def mean_known(self, value: float | None, step: int, device: torch.device) -> float | None:
        """Return the mean of the numbers of those processes that have one, None if none has; otherwise as `agree`."""
        for group in self.groups:
            own = torch.as_tensor(math.nan if value is None else value, device=device, dtype=torch.float64)
            mean = float(_exchanged(group, own, step).nanmean())
            value = None if math.isnan(mean) else mean
        return value

    def report(self, failure: BaseException | None) -> None:
        """Tell the other processes that a call has failed here."""
        for group in self.groups:
            group.report(failure)


ALONE = Ranks()


def ranks_of(model: nn.Module, skipped: Iterable[str], compiled: bool, chosen: Ranks = ALONE) -> Ranks:
    """Return the processes that must take the same full steps of `model`.

    Args:
        skipped: names of the modules that a cached step skips.
        compiled: whether they are inside compiled code. The model is then run up to the first of them.
        chosen: the groups that the user passed; they go before those that the model shows.

    Raises:
        ValueError: it does not show which processes share it.
    """
    tokens = chosen.tokens or _tokens_group(model)
    outers = [""] if compiled else list(skipped)
    found = dict.fromkeys([*chosen.weights, *_weight_groups(model, outers)])  # in one order on all processes
    return Ranks(tokens, chosen.guidance, tuple(group for group in found if group != tokens))


def process_count() -> int:
    """Return the number of processes in torch.distributed; 1 if it is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def ranks_from(group: Any) -> Ranks:
    """Return the processes of a group that a user passes, or of several by the things that they share; None for none.

    Raises:
        TypeError, ValueError: it is no group, or shares something unknown.
    """
    if group is None:
        return ALONE
    groups = dict(group) if isinstance(group, Mapping) else {"tokens": group}
    for shared in groups:
        check_choice("a key of group", shared, Shared)
    own = {shared: Group(value) for shared, value in groups.items()}
    return Ranks(own.get("tokens"), own.get("guidance"), (own["weights"],) if "weights" in own else ())


def _exchanged(group: Group, value: Tensor, step: int) -> Tensor:
    """Return the `value` of each process, (processes, …), float64, on the CPU."""
    own = torch.cat([value.double().flatten(), value.new_full((1,), step, dtype=torch.float64)])
    *values, steps = group.gather_on_host(own).unbind(1)
    if len(set(steps.tolist())) > 1:
        places = (f"process {rank} at step {at:g}" for rank, at in zip(group.ranks, steps.tolist(), strict=True))
        raise RuntimeError(APART.format(", ".join(places)))
    return torch.stack(values, 1).view(-1, *value.shape)


def _tokens_group(model: nn.Module) -> Group | None:
    """Return the group of diffusers' context parallelism, by the model's method or applied by hand; None without it."""
    config = getattr(model.__dict__.get("_parallel_config"), "context_parallel_config", None)
    registries: Iterator[Any] = (module.__dict__.get("_diffusers_hook") for module in model.modules())
    hooks = (
        hook
        for registry in registries
        if registry is not None
        for name, hook in registry.hooks.items()
        if name.startswith("cp_")
    )
    hook = next(hooks, None) if config is None else None
    if config is None and hook is None:
        return None
    mesh = getattr(config or getattr(hook, "parallel_config", None), "_flattened_mesh", None)
    if mesh is None:
        raise ValueError(
            f"{type(model).__name__} runs under context parallelism, but does not show which processes share a "
            "picture: pass group= to relcache.enable"
        )
    return Group(mesh)


def _weight_groups(model: nn.Module, outers: Iterable[str]) -> list[Group]:
    """Return the groups of processes that share weights inside the modules `outers`.

    Weights that FSDP gathers for a module around them, or for one of `outers` itself, do not count: its hooks gather
    them at each call, also where the forward is skipped.
    """
    groups: dict[Group, None] = {}
    for outer in outers:
        is_gathered = any(is_of_class(module, SHARDED) for module in _around(model, outer))
        for name, module in model.get_submodule(outer).named_modules():
            if name and is_of_class(module, OPAQUE):
                raise ValueError(
                    f"{type(model).__name__} has FullyShardedDataParallel at {name} in {outer or 'the model'}, inside "
                    "the modules that a cached step skips: use torch.distributed.fsdp.fully_shard"
                )
            for weight in module.parameters(recurse=False):
                mesh = getattr(weight, "device_mesh", None)
                if mesh is None or (is_gathered and mesh.ndim == 1 and not _is_gathered_inside(model, outer, name)):
                    continue
                shards = [index for index, placement in enumerate(weight.placements) if placement.is_shard()]
                groups |= {Group(mesh.get_group(index)): None for index in shards if mesh.size(index) > 1}
    return list(groups)


def _around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the model, and the modules on the way down to `name`, which comes last."""
    yield model
    for child in name.split(".") if name else ():
        model = model.get_submodule(child)
        yield model


def _is_gathered_inside(model: nn.Module, outer: str, name: str) -> bool:
    """Return whether FSDP gathers the weights of `name`, in `outer`, for a module below `outer`."""
    inner = list(_around(model.get_submodule(outer), name))[1:]
    return any(is_of_class(module, SHARDED) for module in inner)
