"""One transformer of a session: its units, their replacements, and changes made by other code."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from relcache.engine.cache import Cache
from relcache.engine.forwards import is_compiled
from relcache.engine.gauge import Gauge
from relcache.engine.patch import Patch
from relcache.engine.ranks import Ranks, ranks_of
from relcache.engine.unit import Runner
from relcache.engine.watch import Watch
from relcache.engine.wrappers import refuse_wrapped_units
from relcache.models.spec import ModelSpec


class Condition(NamedTuple):
    """The condition of a model at a call.

    Attributes:
        replaced: whether calls of a patched module no longer reach its unit. Loading a LoRA replaces the module;
            removing or compiling other code's hooks drops the replacement of its forward.
        hooks: diffusers' hooks on blocks and modules; its guiders use them to perturb a branch for one call.
        compiled: whether compiled code of the model or of a block contains units.
    """

    replaced: bool
    hooks: tuple[str, ...]
    compiled: bool


class Host:
    """One transformer of a session: its spec, its units, and the patches on it.

    The patched forwards keep the cache alive. The session refers to the model weakly, so a handle does not keep the
    weights alive.
    """

    def __init__(self, name: str, model: nn.Module, spec: ModelSpec, index: int, first_unit: int):
        self.model = weakref.ref(model)
        self.name, self.index = name, index
        self.model_name = type(model).__name__
        self.signature = inspect.signature(type(model).forward)
        self.watch, self.contexts, self.swaps = Watch(), Patch(), Patch()
        self._unfinished = False  # whether swapping the units has failed
        self.describe(spec, first_unit)

    def describe(self, spec: ModelSpec, first_unit: int) -> None:
        """Use the units that `spec` names; the first of them has the index `first_unit` in the session.

        Earlier units stay patched: restore `swaps` first.

        Raises:
            RuntimeError, ValueError: as in `condition_of`.
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
        self._ancestors = {path for path, _ in self._paths} - names
        self._patched: set[str] = set()  # names of modules with replaced forwards
        self.condition_of(model)

    def present_model(self) -> nn.Module:
        """Return the model.

        Raises:
            RuntimeError: it has been deleted.
        """
        model = self.model()
        if model is None:
            raise RuntimeError(f"the {self.model_name} that was enabled has been deleted: enable another one")
        return model

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names."""
        named = dict(self.signature.bind_partial(None, *args, **kwargs).arguments)
        named.pop(next(iter(self.signature.parameters)))
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return named

    def ranks(self, model: nn.Module, compiled: bool, chosen: Ranks) -> Ranks:
        """Return the processes that must take the same full steps; `compiled` and `chosen` as in `ranks_of`.

        Raises:
            ValueError: as in `ranks_of`, or the model's padding is not known to each process.
        """
        names = [name for modules in self.unit_modules for name in modules]
        ranks = ranks_of(model, names, compiled, chosen)
        if ranks.tokens is not None and self.spec.padding:
            raise ValueError(
                f"{self.model_name} pads prompts, and relcache does not know how its tokens are divided among "
                "processes: let one process make each picture"
            )
        divided = (name for name in names if ranks.tokens is not None and _divides_inside(model.get_submodule(name)))
        if (block := next(divided, None)) is not None:
            raise ValueError(
                f"{block} is compiled together with the hook that divides its tokens: compile the whole transformer, "
                "or use granularity='module'"
            )
        return ranks

    @property
    def units(self) -> range:
        """The indices of the units in the session."""
        return range(self.first_unit, self.first_unit + len(self.unit_names))

    def restore(self) -> None:
        """Restore the original objects and stop watching."""
        for patch in (self.swaps, self.contexts, self.watch):
            patch.restore()

    def suspend(self) -> Callable[[], None]:
        """Restore the original objects, and return a function that puts the same replacements back."""
        resumes = ExitStack()
        for patch in (self.swaps, self.contexts, self.watch):
            resumes.callback(patch.suspend())
        return resumes.close

    def swap_units(self, cache: Cache, model: nn.Module) -> None:
        """Replace the forwards of the modules of all units; if that fails, of none.

        Raises:
            ValueError: the model has changed, and has no module for a name in the spec.
        """
        self._unfinished = True
        patched: set[str] = set()
        try:
            refuse_wrapped_units(self.spec, model)
            for index, unit in zip(self.units, self.spec.units(model), strict=True):
                if unit.turn == 0:  # the first call's runner serves the others
                    Runner(cache, index, unit).attach(self.swaps, unit)
                    patched |= set(unit.modules)
            if self.first_unit in cache.gauges:
                around = ["", *with_ancestors([self._gauged])]
                self.gauge.attach(self.swaps, [model.get_submodule(name) for name in around])
                patched.add(self._gauged)
        except BaseException:
            self.swaps.restore()
            raise
        self._patched, self._unfinished = patched, False

    def condition_of(self, model: nn.Module) -> Condition:
        """Return the condition of `model`.

        Raises:
            RuntimeError: another cache is active on it.
        """
        _refuse_other_libraries(model)
        self.watch.renew(model)
        replaced, hooks, compiled = self._unfinished, [], is_compiled(model)
        for name, path in self._paths:
            module: Any = model
            for child in path:
                module = module._modules.get(child) if module is not None else None
            if name in self._patched:
                replaced = replaced or module is None or not self.swaps.acts_on(module)
            if module is None:
                continue
            compiled = compiled or (name in self._ancestors and is_compiled(module))
            registry = module.__dict__.get("_diffusers_hook")
            hooks += [f"{name}:{hook}" for hook in registry.hooks] if registry is not None else []
        other_cache = next((hook for hook in hooks if _is_cache(hook)), None)
        if other_cache is not None:
            block, _, hook = other_cache.partition(":")
            raise RuntimeError(
                f"{self.model_name} has another cache active (hook {hook!r} of diffusers on {block}): remove it, with "
                "transformer.disable_cache() if diffusers set it; two caches would skip each other's work"
            )
        return Condition(replaced, tuple(hooks), compiled)


def count_rows(sample: Any) -> int:
    """Return the number of samples in the noisy input: a tensor (batch, …), or a list with a tensor for each sample."""
    if isinstance(sample, (list, tuple)):
        return len(sample)
    return sample.shape[0] if isinstance(sample, Tensor) and sample.ndim else 1


def form_of_arguments(arguments: Mapping[str, Any], timestep: str) -> Hashable:
    """Return the fixed parts of a call's arguments: their names and nesting, and values other than tensors and numbers.

    It includes whether a ControlNet's tensors are zero, as after its last step, and so waits for the device.

    Args:
        arguments: by name; tensors among them have any shape and dtype.
    """
    form: list[Hashable] = []
    for name in sorted(arguments):
        if name == timestep:
            continue
        leaves, nesting = tree_flatten(arguments[name])
        form.append((name, nesting, *map(_kind, leaves)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if "control" in name and tensors and tensors[0].device.type != "meta":
            form.append(bool(torch.stack([value.any() for value in (tensors[0], tensors[-1])]).any()))
    return tuple(form)


def _kind(leaf: Any) -> Any:
    """Return a leaf that is a plain constant; else its type."""
    return leaf if leaf is None or isinstance(leaf, (bool, str, bytes, torch.dtype)) else type(leaf)


def refuse_cache(original: Callable[..., Any], config: Any = None, *args: Any, **kwargs: Any) -> None:
    """Refuse a model's `enable_cache` while relcache is enabled."""
    raise ValueError(
        f"Caching has already been enabled, with relcache: {type(config).__name__} would be a second cache in this "
        "model, and the two would skip each other's work. Call disable() on relcache's handle first"
    )


def _refuse_other_libraries(model: nn.Module) -> None:
    """Check that no cache of another library has marked `model`.

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


def _divides_inside(module: nn.Module) -> bool:
    """Return whether a compiled module divides tokens inside its compiled code, by context parallelism."""
    registry = module.__dict__.get("_diffusers_hook")
    return is_compiled(module) and registry is not None and any(hook.startswith("cp_input") for hook in registry.hooks)


def _is_cache(hook: str) -> bool:
    """Return whether a hook of diffusers, "module:name", skips work. A cache of text keys and values is exempt."""
    name = hook.partition(":")[2]
    return name.startswith(("fbc_", "pyramid_attention_broadcast")) or ("cache" in name and "text_kv" not in name)


def with_ancestors(names: Iterable[str]) -> list[str]:
    """Return the `names` of modules and of the modules around them, sorted, without the model itself."""
    return sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)})


def refuse_training(model: nn.Module) -> None:
    """Check that `model` is not being trained.

    Raises:
        RuntimeError: the model is in training mode, or uses gradient checkpointing.
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
    """Return whether a parameter or one of `tensors`, of any shape and dtype, requires a gradient."""
    return any(value.requires_grad for value in (*tensors, *model.parameters()))
