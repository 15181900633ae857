"""Builders of methods: the default, those of the literature, and every forecaster with a schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from relcache.checks import check_choice, unknown
from relcache.correctors import CORRECTORS, Corrector, Replay
from relcache.forecasters import FORECASTERS, Forecaster, Newton, Relational, Reuse, Taylor
from relcache.forecasters.expansion import Form, Norm
from relcache.method import Method
from relcache.models.coarse import Granularity
from relcache.presets import Preset
from relcache.schedules import SCHEDULES, Always, ErrorBudget, Growing, Interval, Plan, Schedule

REPLAY = Replay()
OF_INTERVAL = inspect.signature(Interval).parameters


def named_granularity(name: str) -> Granularity:
    """Return `name` as a granularity; raise ValueError for any other text."""
    check_choice("the granularity", name, Granularity)
    return cast(Granularity, name)


def corrector_from(value: Any) -> Corrector | None:
    """Return the corrector for a config's value: "replay", "none", or a table of options, by default for Replay.

    Raises:
        ValueError: the value is none of these, or the corrector has no such option.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, Mapping):
        value = {"name": "replay", **value}
    return _part_from("corrector", value, CORRECTORS, Corrector)


def _part_from(what: str, value: Any, kinds: Mapping[str, Any], base: type[Any]) -> Any:
    """Return the schedule or corrector that a config names, by itself or with options in a table with "name"."""
    if isinstance(value, base):
        return value
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    by_name = {name.lower(): kind for name, kind in kinds.items()}
    name = str(options.pop("name", "")).lower()
    if name not in by_name:
        names = ", ".join(f'"{known}"' for known in by_name)
        none = ', "none"' if what == "corrector" else ""
        raise ValueError(f'the {what} is {names}{none}, or {{"name": …}} with its options; got {value!r}')
    known = inspect.signature(by_name[name]).parameters
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of the {what}", str(option), known))
    return by_name[name](**options)


def auto(
    full_steps: int | None = None,
    *,
    speedup: float | None = None,
    order: int = 2,
    damping: float = 0.5,
    growth: float | None = None,
    granularity: Granularity = "stack",
    corrector: Corrector | str | None = REPLAY,
) -> Method:
    """Return the default: `Taylor` forecasts the stack of blocks, `Growing` plans full steps, `Replay` corrects gaps.

    The full steps and the correction of an output depend on the scheduler's prediction type, not on the model's name.

    Args:
        full_steps: exact number of full steps; by default `schedules.growing.default_budget`.
        speedup: instead, the speed of the loop relative to full compute, by measured times.
        order: order of the expansion. Order 1 caches two features instead of three.
        damping: weight of the term of order 2, as in `Taylor`.
        growth: growth of the gaps, as in `Growing`.
        granularity: the unit that is forecast.
        corrector: None leaves gaps uncorrected.
    """
    forecaster = Taylor(order, reuse_first=True, damping=damping)
    schedule = Growing(full_steps, growth, speedup)
    return Method(forecaster, schedule, name="auto", granularity=granularity, corrector=corrector_from(corrector))


def FORA(interval: int, *, warmup: int = 2, phase: int | None = None) -> Method:
    """Return reuse at a fixed interval (FORA, arXiv 2407.01425)."""
    return Method(Reuse(), Interval(interval, warmup, phase), name="FORA")


def TaylorSeer(order: int, *, interval: int, warmup: int = 2, phase: int | None = None) -> Method:
    """Return the published Taylor expansion at a fixed interval (TaylorSeer, arXiv 2503.06923)."""
    return Method(Taylor(order), Interval(interval, warmup, phase), name="TaylorSeer")


def RFC(
    order: int = 2,
    *,
    threshold: float = 0.12,
    warmup: int = 2,
    direction: Form = "taylor",
    norm: Norm = "sample",
    longest_gap: int | None = None,
    full_last: int = 0,
    token_stride: int = 1,
    full_steps: int | None = None,
) -> Method:
    """Return relational feature caching, relational estimation with relational scheduling (RFC, arXiv 2602.19506).

    With `norm="sample"` norms are over each sample, and the decision for a batch uses the mean of the samples' errors.
    With `norm="tensor"` norms and the error are over the whole tensor, as in the paper's formula. With a `token_stride`
    norms and errors of inputs use a subsample of the tokens. With `full_steps` the threshold is only the initial one,
    and adapts to make exactly this number of steps full.
    """
    schedule = ErrorBudget(threshold, warmup, norm, longest_gap, full_last, token_stride, full_steps)
    return Method(Relational(order, direction, norm, token_stride), schedule, name="RFC")


def RFE(
    order: int,
    *,
    interval: int,
    warmup: int = 2,
    direction: Form = "taylor",
    norm: Norm = "sample",
    phase: int | None = None,
    token_stride: int = 1,
) -> Method:
    """Return relational feature estimation alone, at a fixed interval: an ablation of RFC."""
    return Method(Relational(order, direction, norm, token_stride), Interval(interval, warmup, phase), name="RFE")


def RCS(
    order: int,
    *,
    threshold: float,
    warmup: int = 2,
    norm: Norm = "sample",
    longest_gap: int | None = None,
    full_last: int = 0,
    token_stride: int = 1,
    direction: Form = "taylor",
    full_steps: int | None = None,
) -> Method:
    """Return relational cache scheduling alone, with the forecast of `Taylor` or `Newton`: an ablation of RFC."""
    check_choice("the direction of RCS", direction, Form)
    schedule = ErrorBudget(threshold, warmup, norm, longest_gap, full_last, token_stride, full_steps)
    return Method(Taylor(order) if direction == "taylor" else Newton(order), schedule, name="RCS")


def _full() -> Method:
    return Method(Reuse(), Always(), name="full")


def _plan(full_steps: list[int], order: int = 2, direction: Form = "taylor", norm: Norm = "sample") -> Method:
    return Method(Relational(order, direction, norm), Plan(full_steps), name="RFE on a plan")


def _preset(name: str) -> Method:
    return Preset.named(name).method


def _paired(kind: type[Forecaster]) -> Callable[..., Method]:
    """Return a builder that pairs a forecaster with `schedule`, or with `Interval`, and takes the options of both."""

    def build(schedule: Any = None, **options: Any) -> Method:
        plan = {option: options.pop(option) for option in OF_INTERVAL if options.get(option) is not None}
        if schedule is None and "interval" not in plan:
            raise ValueError(f"{name} needs interval: for example {name}:interval=…")
        if schedule is not None and plan:
            raise ValueError(f"{name} takes either a schedule or {', '.join(plan)}")
        chosen = Interval(**plan) if schedule is None else _part_from("schedule", schedule, SCHEDULES, Schedule)
        forecaster = kind(**{option: options[option] for option in own if option in options})
        return Method(forecaster, chosen, name=kind.__name__ if schedule is None else "")

    name, own = kind.__name__.lower(), inspect.signature(kind).parameters
    optional = [OF_INTERVAL["interval"].replace(default=None), *list(OF_INTERVAL.values())[1:]]
    last = inspect.Parameter("schedule", inspect.Parameter.KEYWORD_ONLY, default=None)
    by_name = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*own.values(), *optional, last)]
    setattr(build, "__signature__", inspect.Signature(by_name))  # noqa: B010 -- mypy knows no such attribute
    return build


BY_NAME: dict[str, Callable[..., Method]] = {
    build.__name__.strip("_").lower(): build
    for build in (auto, _full, FORA, TaylorSeer, RFE, RCS, RFC, _plan, _preset)
} | {name.lower(): _paired(kind) for name, kind in FORECASTERS.items()}  # fmt: skip
