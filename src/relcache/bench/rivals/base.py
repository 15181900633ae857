"""A rival: a way to sample faster that is not one of relcache's methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from relcache.models import SPECS, UNSUPPORTED, ModelSpec, spec_for
from relcache.session.components import find_transformers

if TYPE_CHECKING:
    from relcache.bench.sampling.batches import Sampler

WARMUP = 2  # full steps at the beginning of rivals with that option, as for relcache's methods
PHASE = 3  # the first full step after the warm-up of diffusers' TaylorSeer, and of rivals with a mask of steps
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Rival(ABC):
    """A cache of another library, a solver with fewer steps, or a method of the literature by its equations.

    The options of a run are plain values that JSON can hold: the budget, and all that `calibrate` returned.

    Attributes:
        name: its name in files and on the command line.
        title: its name in tables, the library first.
        source: the paper or package that it comes from.
        group: "solver", "diffusers", "cache-dit", "equations", or another; a name for all of the group.
        budget: the option that sets its cost. A "threshold" is searched for, an "interval" follows from the number of
            full steps, and "steps" and "full_steps" are that number. Any other option takes each of `values` in turn.
        values: the values of another option.
        start: the threshold at which a search begins.
        warmup: full steps at the beginning of every run.
        phase: the first full step of an interval after the warm-up; None for the published one.
        one_call: whether it needs a pipeline that calls the transformer once in each step.
    """

    name: str
    title: str
    source: ClassVar[str]
    group: ClassVar[str]
    budget: ClassVar[str] = "threshold"
    values: ClassVar[tuple[float, ...]] = ()
    start: ClassVar[float] = 0.1
    warmup: ClassVar[int] = 1
    phase: ClassVar[int | None] = None
    one_call: ClassVar[bool] = False

    def check(self, value: Any) -> None:
        """Check a value of the budget.

        Raises:
            ValueError: it is no number, or not one that the budget takes.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ValueError(f"{self.budget} of {self.name} is a number, at least 0; got {value!r}")
        if self.values and value not in self.values:
            known = ", ".join(f"{each:g}" for each in self.values)
            raise ValueError(f"{self.budget} of {self.name} is one of {known}; got {value!r}")
        if self.budget in ("interval", "steps", "full_steps") and (value != int(value) or value < 1):
            raise ValueError(f"{self.budget} of {self.name} is a whole number, at least 1; got {value!r}")

    @abstractmethod
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> AbstractContextManager[Any]:
        """Return a context that makes a pipeline, or a bare transformer, skip work in runs of `steps` steps."""

    def unfit(self, pipeline_or_model: Any) -> str:
        """Return why it cannot run here: a model it does not support, or a package that is missing; "" if it can."""
        return ""

    def calibrate(self, sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> dict[str, Any]:
        """Return further options, found on calibration samples for which no result is reported."""
        return {}

    def targets(self, asked: Sequence[int], steps: int) -> Sequence[int]:
        """Return the numbers of full steps at which it runs in a race whose other contestants run at those `asked`."""
        return asked

    @property
    def calibrates(self) -> bool:
        """Whether `calibrate` finds options."""
        return type(self).calibrate is not Rival.calibrate


def only_transformer(pipeline_or_model: Any) -> nn.Module:
    """Return the transformer of a pipeline, or the bare transformer; raise ValueError if there are several."""
    models, _ = find_transformers(pipeline_or_model)
    if len(models) > 1:
        raise ValueError(f"only a pipeline with one transformer can be timed; this pipeline has {', '.join(models)}")
    return next(iter(models.values()))


def known_spec(model: nn.Module) -> ModelSpec:
    """Return the shipped spec of a transformer."""
    return spec_for(model, SPECS, UNSUPPORTED)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore all attributes, submodules and diffusers' hooks of all modules of `model` at the end.

    Disabled rivals leave some behind: registries of hooks, forwards of their own, aliases of modules. Pipelines make a
    registry in their first run, so that a rival can also add to one that was there.
    """
    before: list[tuple[nn.Module, dict[str, Any], dict[str, nn.Module | None], dict[str, Any]]] = [
        (module, dict(vars(module)), dict(module._modules), _hooks_of(module)) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, children, hooks in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
            if hooks:
                vars(module._diffusers_hook).update(hooks)


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    """Return copies of the containers in a module's registry of diffusers' hooks; none without a registry."""
    registry: Any = vars(module).get("_diffusers_hook")
    return {name: copy(getattr(registry, name)) for name in ("hooks", "_hook_order", "_fn_refs")} if registry else {}


def lists_of_blocks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of blocks with units of the spec, by name, in the order of computation."""
    found: dict[str, nn.ModuleList] = {}
    for unit in known_spec(model).units(model):
        name = next(iter(unit.modules)).partition(".")[0]
        blocks = getattr(model, name)
        if isinstance(blocks, nn.ModuleList):
            found[name] = blocks
    return found


@contextmanager
def hooked(model: nn.Module, apply: Callable[[], None]) -> Iterator[None]:
    """Hook `model` by `apply` inside the context, with a cache context of its own.

    The model's registry remembers the hooked modules, so it is invalidated whenever they change.
    """
    from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

    with as_it_was(model):
        apply()
        registry = HookRegistry.check_if_exists_or_initialize(model)
        registry.invalidate_child_registries_cache()
        _set_cache_context(model, CacheContext("run"))
        try:
            yield
        finally:
            registry.invalidate_child_registries_cache()
