"""One transformer of a session: where its units are, what stands in for them, and who else has laid hands on it.

Knows specs, runners and the patch; of caching nothing.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from relcache.cache import Cache
from relcache.gauge import Gauge
from relcache.models.base import ModelSpec
from relcache.patch import Patch, is_compiled_anew
from relcache.runner import Runner


class Condition(NamedTuple):
    """How a model is found at a call.

    Attributes:
        replaced: whether a patched module is no longer the one that the model calls, as after loading a LoRA, or was
            compiled since.
        hooks: diffusers' hooks on blocks and modules: by them its guiders perturb a branch for one call.
        compiled: whether units lie inside compiled code, the model's own or that of a block.
    """

    replaced: bool
    hooks: tuple[str, ...]
    compiled: bool


class Host:
    """One transformer of a session: its spec, its units, and the patches on it.

    The model holds the cache by its patched forwards; the session holds the model weakly, so that a handle kept for its
    report does not keep the weights.
    """

    def __init__(self, name: str, model: nn.Module, spec: ModelSpec, place: int, first_unit: int):
        self.model = weakref.ref(model)
        self.name, self.place = name, place
        self.model_name = type(model).__name__
        self.signature = inspect.signature(type(model).forward)
        self.watch, self.contexts, self.swaps = Patch(), Patch(), Patch()
        self.describe(spec, first_unit)
        self.look_at(model)

    def describe(self, spec: ModelSpec, first_unit: int) -> None:
        """Take the units that `spec` names, the first of which is the session's `first_unit`.

        What stands in for the units before is left in place: restore `swaps` first.
        """
        model = self.present_model()
        self.spec, self.first_unit = spec, first_unit
        units = spec.units(model)
        spec.check_arguments(model, units)
        first = (spec.fine or spec).units(model)[0]
        self.gauge, self._gauged = Gauge(first.part), next(iter(first.modules))
        self.unit_names = [unit.name for unit in units]
        self.parts = [unit.part for unit in units]
        self.unit_modules = [list(unit.modules) if unit.turn == 0 else [] for unit in units]  # each module once
        self.sample = spec.sample or list(self.signature.parameters)[1]
        names = {self._gauged, *(name for modules in self.unit_modules for name in modules)}
        self._paths = [(path, path.split(".")) for path in with_ancestors(names)]
        self._above = {path for path, _ in self._paths} - names  # what the modules lie in
        self._patched: dict[str, int] = {}  # identities of the patched modules

    def present_model(self) -> nn.Module:
        """The model.

        Raises:
            RuntimeError: it has been deleted.
        """
        model = self.model()
        if model is None:
            raise RuntimeError(f"the {self.model_name} that was enabled is gone")
        return model

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call by their names."""
        given = dict(self.signature.bind_partial(None, *args, **kwargs).arguments)
        given.pop(next(iter(self.signature.parameters)))
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return given

    @property
    def units(self) -> range:
        """Places of the host's units among the session's."""
        return range(self.first_unit, self.first_unit + len(self.unit_names))

    def swap_units(self, cache: Cache, model: nn.Module) -> None:
        """Stand in for the forwards of the modules of all units."""
        self._patched = {}
        for index, unit in zip(self.units, self.spec.units(model), strict=True):
            if unit.turn == 0:  # the first call's runner serves the others
                Runner(cache, index, unit).attach(self.swaps, unit)
                self._patched |= {name: id(module) for name, module in unit.modules.items()}
        if self.first_unit in cache.gauges:
            module = model.get_submodule(self._gauged)
            self.gauge.attach(self.swaps, module)
            self._patched[self._gauged] = id(module)

    def look_at(self, model: nn.Module) -> Condition:
        """How `model` is found.

        Raises:
            RuntimeError: another cache has hooks in it.
        """
        replaced, hooks, compiled = False, [], model._compiled_call_impl is not None
        for name, path in self._paths:
            module: Any = model
            for child in path:
                module = module._modules.get(child) if module is not None else None
            identity = self._patched.get(name)
            if identity is not None:
                replaced = replaced or identity != id(module) or is_compiled_anew(module)
            elif module is not None and module._compiled_call_impl is not None:
                compiled = compiled or name in self._above
            registry = module.__dict__.get("_diffusers_hook") if module is not None else None
            if registry is not None:
                hooks += [f"{name}:{hook}" for hook in registry.hooks]
        foreign = next((hook for hook in hooks if _is_cache(hook)), None)
        if foreign is not None:
            block, _, hook = foreign.partition(":")
            raise RuntimeError(
                f"{self.model_name} has another cache active (hook {hook!r} of diffusers on {block}): remove it, with "
                "transformer.disable_cache() if that set it; two caches would skip each other's work"
            )
        return Condition(replaced, tuple(hooks), compiled)


def count_rows(sample: Any) -> int:
    """Samples in the argument that holds the noisy sample: a tensor with the batch first, or a list of samples."""
    if isinstance(sample, (list, tuple)):
        return len(sample)
    return sample.shape[0] if isinstance(sample, Tensor) and sample.ndim else 1


def form_of_arguments(given: Mapping[str, Any], timestep: str) -> Hashable:
    """What is fixed of a call's arguments: which are given, how they nest, and what is neither tensor nor number.

    What a ControlNet gives is read, which waits for the device: when its last step is over it gives zeros.
    """
    form: list[Hashable] = []
    for name in sorted(given):
        if name == timestep:
            continue
        leaves, nesting = tree_flatten(given[name])
        form.append((name, nesting, *map(_kind, leaves)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if "control" in name and tensors and tensors[0].device.type != "meta":
            form.append(bool(torch.stack([value.any() for value in (tensors[0], tensors[-1])]).any()))
    return tuple(form)


def _kind(leaf: Any) -> Any:
    """A leaf by its value, if that is no number, and can be told; else by its type."""
    return leaf if leaf is None or isinstance(leaf, (bool, str, bytes, torch.dtype)) else type(leaf)


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


def with_ancestors(names: Iterable[str]) -> list[str]:
    """`names` of modules, and of all that they lie in, the model itself excepted."""
    return sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)})
