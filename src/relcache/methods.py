"""Build methods by name: those of the literature, the default, and presets.

Knows forecasters, schedules and correctors, nothing of sessions or models.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from relcache.checks import check_choice, unknown
from relcache.correctors import CORRECTORS, Corrector, Replay
from relcache.forecasters import FORECASTERS, Forecaster, Newton, Relational, Reuse, Taylor
from relcache.forecasters.expansion import Form, Norm
from relcache.method import Method
from relcache.models.coarse import Granularity
from relcache.presets import Preset
from relcache.schedules import Always, ErrorBudget, Growing, Interval, Plan, Schedule

REPLAY = Replay()


def named_granularity(name: str) -> Granularity:
    """Return `name` as a granularity; raise ValueError for any other text."""
    check_choice("the granularity", name, Granularity)
    return cast(Granularity, name)


def auto(
    full_steps: int | None = None,
    *,
    speedup: float | None = None,
    order: int = 2,
    damping: float = 0.5,
    growth: float | None = None,
    granularity: Granularity = "stack",
    corrector: Corrector | None = REPLAY,
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
    return Method(
        forecaster, Growing(full_steps, growth, speedup), name="auto", granularity=granularity, corrector=corrector
    )


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


def _at_interval(kind: type[Forecaster]) -> Callable[..., Method]:
    """Return a builder that pairs a forecaster with `Interval` and takes the options of both."""
    interval_options = inspect.signature(Interval).parameters

    def build(**options: Any) -> Method:
        schedule = Interval(**{option: options.pop(option) for option in interval_options if option in options})
        return Method(kind(**options), schedule, name=kind.__name__)

    parameters = [*inspect.signature(kind).parameters.values(), *interval_options.values()]
    by_name = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    setattr(build, "__signature__", inspect.Signature(by_name))  # noqa: B010 -- mypy knows no such attribute
    return build


BY_NAME: dict[str, Callable[..., Method]] = {
    build.__name__.strip("_").lower(): build
    for build in (auto, _full, FORA, TaylorSeer, RFE, RCS, RFC, _plan, _preset)
} | {
    name.lower(): _at_interval(kind)
    for name, kind in FORECASTERS.items()
    if kind not in (Reuse, Taylor, Relational)  # paired in FORA, TaylorSeer and RFE
}  # fmt: skip


def chosen_method(
    method: Method | Preset | str | None = None,
    forecaster: Forecaster | None = None,
    schedule: Schedule | None = None,
    full_steps: int | None = None,
    speedup: float | None = None,
) -> Method:
    """Return the chosen method, by default `auto()`, with its budget.

    Raises:
        TypeError: both a method and parts are passed, a schedule comes alone, or the method has another type.
        ValueError: a text names no method, or the method does not accept the budget.
    """
    if forecaster is None and method is None and schedule is not None:
        raise TypeError("a schedule needs a forecaster beside it: forecaster=relcache.Taylor(1), for example")
    if method is not None and (forecaster is not None or schedule is not None):
        raise TypeError("take either a method, or forecaster= and schedule=, not both")
    if forecaster is not None:
        method = Method(forecaster, Growing() if schedule is None else schedule)
    elif method is None:
        method = auto()
    elif isinstance(method, str):
        method = method_from_text(method)
    elif isinstance(method, Preset):
        method = method.method
    if not isinstance(method, Method):
        raise TypeError(f"the method is relcache.auto(...), RFC(...) or the like, a preset or a text; got {method!r}")
    return method.with_budget(full_steps, speedup)


NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
SHARED = ("granularity", "cache_dtype", "offload", "memory_limit", "corrector", "finer")  # options of every method


def method_from_config(config: Mapping[str, Any]) -> Method:
    """Return the method in `config`, such as `{"method": "rfc", "order": 2, "threshold": 0.12}`.

    Raises:
        ValueError: the method or an option is missing or unknown, or the method refuses a value. The message names the
            nearest known name.
    """
    options = dict(config)
    if "method" not in options:
        raise ValueError(f"a method's config has the key 'method', one of {', '.join(BY_NAME)}; got {sorted(options)}")
    name = str(options.pop("method")).lower()
    if name not in BY_NAME:
        raise ValueError(unknown("method", name, BY_NAME))
    build = BY_NAME[name]
    shared = {name: options.pop(name) for name in SHARED if name in options}
    if "corrector" in shared:
        shared["corrector"] = corrector_from(shared["corrector"])
    parameters = inspect.signature(build).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(unknown(f"option of {name}", option, [*parameters, *SHARED]))
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in options]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}: for example {name}:" + ",".join(f"{m}=…" for m in missing)
        )
    return replace(build(**options), **shared)


def corrector_from(value: Any) -> Corrector | None:
    """Return the corrector for a config's value: "replay", "none", or a table of options, by default for Replay.

    Raises:
        ValueError: the value is none of these, or the corrector has no such option.
    """
    if isinstance(value, Corrector) or value is None or value == "none":
        return None if value == "none" else value
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    kind = {name.lower(): kind for name, kind in CORRECTORS.items()}.get(str(options.pop("name", "replay")).lower())
    if kind is None:
        names = ", ".join(f'"{name.lower()}"' for name in CORRECTORS)
        raise ValueError(f'the corrector is {names}, "none", or {{"degree": 1, "theta": 1}}, got {value!r}')
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            raise ValueError(unknown("option of the corrector", str(option), known))
    return kind(**options)


def method_from_text(text: str) -> Method:
    """Return the method for a text on the command line: `rfc:order=2,threshold=0.12`, `fora:interval=4`, `full`.

    Raises:
        ValueError: as in `method_from_config` and `config_from_text`.
    """
    return method_from_config(config_from_text(text))


def config_from_text(text: str) -> dict[str, Any]:
    """Return `name:key=value,…` as a config for `method_from_config`; a list is written `full_steps=[0,1,5]`.

    Raises:
        ValueError: a part lacks "=", an option comes twice, or a bracket is not closed.
    """
    name, _, rest = text.partition(":")
    config: dict[str, Any] = {"method": name.strip()}
    for part in split_list(rest, text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise ValueError(f"{part.strip()!r} in {text!r} is not of the form option=value")
        if key == "method":
            raise ValueError(f"{text!r} names two methods")
        if key in config:
            raise ValueError(f"{text!r} gives {key} twice: leave one out")
        config[key] = value_from_text(value)
    return config


def value_from_text(text: str) -> Any:
    """Return `text` as a number (1e-2, 1E5, .5, 5., -1, +1), else as JSON, else unchanged."""
    if NUMBER.fullmatch(text):
        try:
            return int(text)
        except ValueError:  # not whole, or too long for Python
            return float(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def split_list(text: str, whole: str | None = None) -> list[str]:
    """Return the parts of a comma-separated list; a comma within brackets or braces does not separate parts.

    Raises:
        ValueError: a bracket is not closed; the message quotes `whole`, the text around `text`.
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise ValueError(f"{whole or text!r} has a bracket that is not closed, or not opened")
    return [part for part in parts if part.strip()]
