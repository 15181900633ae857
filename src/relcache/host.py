"""One transformer of a session: where its units are, what stands in for them, and who else has laid hands on it.

Knows specs, runners and the patch; of caching nothing.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from relcache.models.base import ModelSpec
from relcache.patch import Patch
from relcache.runner import Keeper, Runner


class Host:
    """One transformer of a session: its spec, its units, and the patches on it.

    The model holds the session by its patched forwards; the session holds the model weakly, so that a handle kept for
    its report does not keep the weights.
    """

    def __init__(self, name: str, model: nn.Module, spec: ModelSpec, place: int, first_unit: int):
        self.model = weakref.ref(model)
        self.name, self.spec, self.place, self.first_unit = name, spec, place, first_unit
        self.model_name = type(model).__name__
        spec.check_arguments(model)
        units = spec.units(model)
        self.unit_names = [unit.name for unit in units]
        self.parts = [unit.part for unit in units]
        self.unit_modules = [list(unit.modules) if unit.turn == 0 else [] for unit in units]  # each module once
        self.signature = inspect.signature(type(model).forward)
        self.sample = spec.sample or list(self.signature.parameters)[1]
        self.watch, self.swaps = Patch(), Patch()
        self._patched: list[tuple[list[str], int]] = []
        self._hooked = _with_ancestors(name for modules in self.unit_modules for name in modules)
        self.perturbation(model)

    @property
    def units(self) -> range:
        """Places of the host's units among the session's."""
        return range(self.first_unit, self.first_unit + len(self.unit_names))

    def swap_units(self, keeper: Keeper, model: nn.Module) -> None:
        """Stand in for the forwards of the modules of all units."""
        units = self.spec.units(model)
        for index, unit in zip(self.units, units, strict=True):
            if unit.turn:
                continue  # the first call's runner serves the others
            Runner(keeper, index, unit).attach(self.swaps, unit)
        self._patched = [
            (name.split("."), id(module)) for unit in units if not unit.turn for name, module in unit.modules.items()
        ]

    def perturbation(self, model: nn.Module) -> tuple[str, ...]:
        """Names of diffusers' hooks on blocks and modules: by them its guiders perturb a branch for one call.

        Raises:
            RuntimeError: a hook of another cache is among them.
        """
        found: list[str] = []
        for path in self._hooked:
            module: Any = model
            for name in path:
                module = module._modules.get(name)
                if module is None:
                    break
            else:
                registry = module.__dict__.get("_diffusers_hook")
                found += [f"{'.'.join(path)}:{hook}" for hook in registry.hooks] if registry is not None else []
        foreign = next((name for name in found if _is_cache(name)), None)
        if foreign is not None:
            block, _, hook = foreign.partition(":")
            raise RuntimeError(
                f"{self.model_name} has another cache active (hook {hook!r} of diffusers on {block}): remove it, with "
                "transformer.disable_cache() if that set it; two caches would skip each other's work"
            )
        return tuple(found)

    def is_replaced(self, model: nn.Module) -> bool:
        """Whether a patched module is no longer the one that the model calls, as after loading or unloading a LoRA."""
        for path, identity in self._patched:
            module: Any = model
            for name in path:
                module = module._modules.get(name)
                if module is None:
                    return True
            if id(module) != identity:
                return True
        return False


def refuse_cache(original: Callable[..., Any], config: Any = None, *args: Any, **kwargs: Any) -> None:
    """Stands in for a model's `enable_cache` while relcache is enabled."""
    raise ValueError(
        f"Caching has already been enabled, with relcache: {type(config).__name__} would be a second cache in this "
        "model, and the two would skip each other's work. Call disable() on relcache's handle first"
    )


def _is_cache(hook: str) -> bool:
    """Whether a hook of diffusers, by its name, skips work on steps. One that keeps keys of the text does not."""
    name = hook.partition(":")[2]
    return name.startswith(("fbc_", "pyramid_attention_broadcast")) or ("cache" in name and "text_kv" not in name)


def _with_ancestors(names: Iterable[str]) -> list[list[str]]:
    """Paths of the modules `names` and of all that they lie in, the model itself excepted."""
    paths = {tuple(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    return [list(path) for path in sorted(paths)]
