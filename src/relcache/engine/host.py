"""One transformer of a session: where its units are, what stands in for them, and who else has laid hands on it.

Knows specs, runners and the patch; of caching nothing.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from relcache.engine.cache import Cache
from relcache.engine.forwards import has_compiled_forward
from relcache.engine.gauge import Gauge
from relcache.engine.patch import Patch
from relcache.engine.ranks import MAY_SHARE, check_ranks, processes
from relcache.engine.unit import Runner
from relcache.engine.watch import Watch
from relcache.engine.wrappers import refuse_wrapped_units
from relcache.models.spec import ModelSpec


class Condition(NamedTuple):
    """How a model is found at a call.

    Attributes:
        replaced: whether a patched module is no longer the one that the model calls, as after loading a LoRA, or a call
            of it no longer comes to its unit, as after other code's hooks were removed, or compiled since.
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

    def __init__(
        self, name: str, model: nn.Module, spec: ModelSpec, place: int, first_unit: int, needs_signal: bool = False
    ):
        self.model = weakref.ref(model)
        self.name, self.place = name, place
        self.model_name = type(model).__name__
        self.signature = inspect.signature(type(model).forward)
        self.watch, self.contexts, self.swaps = Watch(), Patch(), Patch()
        self._needs_signal = needs_signal  # whether steps are decided by what this process sees
        self._unfinished = False  # whether standing in for the units has failed
        self._told_of_ranks = False
        self.describe(spec, first_unit)

    def describe(self, spec: ModelSpec, first_unit: int) -> None:
        """Take the units that `spec` names, the first of which is the session's `first_unit`.

        What stands in for the units before is left in place: restore `swaps` first.

        Raises:
            RuntimeError, ValueError: as `condition_of`.
        """
        model = self.present_model()
        self.spec, self.first_unit = spec, first_unit
        refuse_wrapped_units(spec, model)
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
        self._patched: set[str] = set()  # names of the modules that are stood in for
        self.condition_of(model)

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

    def let_go(self) -> None:
        """Put back all that was there before anything was swapped or watched."""
        for patch in (self.swaps, self.contexts, self.watch):
            patch.restore()

    def suspend(self) -> Callable[[], None]:
        """The same for a while: the function returned puts the very replacements in again."""
        resumes = [patch.suspend() for patch in (self.swaps, self.contexts, self.watch)]

        def resume() -> None:
            for each in reversed(resumes):
                each()

        return resume

    def swap_units(self, cache: Cache, model: nn.Module) -> None:
        """Stand in for the forwards of the modules of all units, or of none where that fails.

        Raises:
            ValueError: the model has changed, and has modules no longer that the spec names.
        """
        self._unfinished = True
        try:
            refuse_wrapped_units(self.spec, model)
            self._patched = self._swap_units(cache, model)
        except BaseException:
            self.swaps.restore()
            raise
        self._unfinished = False

    def _swap_units(self, cache: Cache, model: nn.Module) -> set[str]:
        patched: set[str] = set()
        for index, unit in zip(self.units, self.spec.units(model), strict=True):
            if unit.turn == 0:  # the first call's runner serves the others
                Runner(cache, index, unit).attach(self.swaps, unit)
                patched |= set(unit.modules)
        if self.first_unit in cache.gauges:
            pieces = self._gauged.split(".")
            above = [model.get_submodule(".".join(pieces[:depth])) for depth in range(len(pieces) + 1)]
            self.gauge.attach(self.swaps, above)
            patched.add(self._gauged)
        return patched

    def condition_of(self, model: nn.Module) -> Condition:
        """How `model` is found.

        Raises:
            RuntimeError: another cache has laid hands on it.
            ValueError: processes share it that may not decide apart.
        """
        _refuse_marks(model)
        self.watch.renew(model)
        replaced, hooks, compiled = self._unfinished, [], _is_compiled(model)
        for name, path in self._paths:
            module: Any = model
            for child in path:
                module = module._modules.get(child) if module is not None else None
            if name in self._patched:
                replaced = replaced or module is None or not self.swaps.acts_on(module)
            elif module is not None and name in self._above:
                compiled = compiled or _is_compiled(module)
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
        if self._needs_signal and processes() > 1:
            self._check_ranks(model, compiled)
        return Condition(replaced, tuple(hooks), compiled)

    def _check_ranks(self, model: nn.Module, compiled: bool) -> None:
        units = {name for modules in self.unit_modules for name in modules}
        check_ranks(model, [module for name, module in model.named_modules() if name in units], compiled)
        if not self._told_of_ranks:
            self._told_of_ranks = True
            warnings.warn(MAY_SHARE.format(processes()), stacklevel=2)


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or has_compiled_forward(module)


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


def _refuse_marks(model: nn.Module) -> None:
    """See that no other library has left the mark of its cache on `model`.

    Raises:
        RuntimeError: one has.
    """
    if model.__dict__.get("_is_cached"):  # cache-dit, para-attn and nunchaku
        raise RuntimeError(
            f"{type(model).__name__} has another cache active, of cache-dit or a library like it: call "
            "cache_dit.disable_cache(pipe) first; two caches would skip each other's work"
        )
    if model.__dict__.get("enable_teacache") or getattr(type(model), "enable_teacache", False):
        raise RuntimeError(
            f"{type(model).__name__} has another cache active, TeaCache: set enable_teacache to False and put the "
            "class's own forward back first; two caches would skip each other's work"
        )


def _is_cache(hook: str) -> bool:
    """Whether a hook of diffusers, by its name, skips work on steps. One that keeps keys of the text does not."""
    name = hook.partition(":")[2]
    return name.startswith(("fbc_", "pyramid_attention_broadcast")) or ("cache" in name and "text_kv" not in name)


def with_ancestors(names: Iterable[str]) -> list[str]:
    """`names` of modules, and of all that they lie in, the model itself excepted."""
    return sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)})


def refuse_training(model: nn.Module) -> None:
    """See that nobody trains `model`.

    Raises:
        RuntimeError: it is in training mode, or checkpoints its gradients.
    """
    if model.training and torch.is_grad_enabled():
        raise RuntimeError(
            "relcache is enabled on a model in training mode: cached steps have no gradients. "
            "Call model.eval() to sample, or disable() on the handle to train"
        )
    if torch.is_grad_enabled() and getattr(model, "gradient_checkpointing", False):
        raise RuntimeError(
            "relcache is enabled on a model with gradient checkpointing: its backward pass would run the cached "
            "modules once more. Call disable_gradient_checkpointing(), sample under torch.no_grad(), or disable() "
            "on the handle to train"
        )


def wants_gradient(model: nn.Module, tensors: list[Tensor]) -> bool:
    """Whether a parameter or an argument of a call requires a gradient."""
    return any(value.requires_grad for value in (*tensors, *model.parameters()))
