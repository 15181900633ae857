"""Methods by name: those of the literature, the default, and presets.

Knows forecasters and schedules, nothing of sessions or models.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from relcache.checks import check_choice, unknown
from relcache.correctors import Corrector, Replay
from relcache.forecasters import Forecaster, Linear, Newton, Relational, Reuse, Taylor
from relcache.forecasters.expansion import Form, Norm
from relcache.method import Method
from relcache.models.coarse import Granularity
from relcache.presets import Preset
from relcache.schedules import Always, ErrorBudget, Growing, Interval, Plan, Schedule


def named_granularity(name: str) -> Granularity:
    """The granularity of this name.

    Raises:
        ValueError: there is none.
    """
    check_choice("the granularity", name, Granularity)
    return cast(Granularity, name)


REPLAY = Replay()


def auto(
    full_steps: int | None = None,
    speedup: float | None = None,
    order: int = 2,
    damping: float = 0.5,
    growth: float | None = None,
    granularity: Granularity = "stack",
    corrector: Corrector | None = REPLAY,
) -> Method:
    """The default: the stack of blocks forecast by Taylor, `Growing` full steps, gaps made good by `Replay`.

    Which steps are full, and how an output follows its corrected sample, depend on what the scheduler says that the
    model predicts, not on the model's name.

    Args:
        full_steps: exactly so many full steps; by default `schedules.growing.default_budget`.
        speedup: instead, as many as make the loop so many times faster, by measured times.
        order: of the expansion. Order 1 holds two features instead of three.
        damping: weight of the term of order 2, as of `Taylor`.
        growth: of the gaps, as of `Growing`.
        granularity: what is forecast as one.
        corrector: None leaves gaps as they were forecast.
    """
    schedule = Growing(full_steps, growth, speedup)
    return Method(Taylor(order, reuse_first=True, damping=damping), schedule, "auto", granularity, corrector=corrector)


def FORA(interval: int, warmup: int = 2, phase: int | None = None) -> Method:
    """Reuse at a fixed interval (FORA, arXiv 2407.01425)."""
    return Method(Reuse(), Interval(interval, warmup, phase), "FORA")


def TaylorSeer(order: int, interval: int, warmup: int = 2, phase: int | None = None) -> Method:
    """The published Taylor expansion at a fixed interval (TaylorSeer, arXiv 2503.06923)."""
    return Method(Taylor(order), Interval(interval, warmup, phase), "TaylorSeer")


def RFC(
    order: int = 2,
    threshold: float = 0.12,
    warmup: int = 2,
    direction: Form = "taylor",
    norm: Norm = "sample",
    longest_gap: int | None = None,
    full_last: int = 0,
    token_stride: int = 1,
    full_steps: int | None = None,
) -> Method:
    """Relational feature caching: relational estimation with relational scheduling (RFC, arXiv 2602.19506).

    With `norm="sample"` norms run over each sample, and a batch's one decision takes the mean of its samples' errors.
    With `norm="tensor"` norms and the error ratio run over the whole tensor, the paper's formula to the letter.
    Norms and errors of inputs run over every `token_stride`-th token. With `full_steps` the threshold is only the first
    one, and is steered so that exactly so many steps are full.
    """
    schedule = ErrorBudget(threshold, warmup, norm, longest_gap, full_last, token_stride, full_steps)
    return Method(Relational(order, direction, norm, token_stride), schedule, "RFC")


def RFE(
    order: int,
    interval: int,
    warmup: int = 2,
    direction: Form = "taylor",
    norm: Norm = "sample",
    phase: int | None = None,
    token_stride: int = 1,
) -> Method:
    """Relational feature estimation alone, at a fixed interval: an ablation of RFC."""
    return Method(Relational(order, direction, norm, token_stride), Interval(interval, warmup, phase), "RFE")


def RCS(
    order: int,
    threshold: float,
    warmup: int = 2,
    norm: Norm = "sample",
    longest_gap: int | None = None,
    full_last: int = 0,
    token_stride: int = 1,
    direction: Form = "taylor",
    full_steps: int | None = None,
) -> Method:
    """Relational cache scheduling alone, on TaylorSeer's forecast: an ablation of RFC. Or on `Newton`'s."""
    check_choice("the direction of RCS", direction, Form)
    schedule = ErrorBudget(threshold, warmup, norm, longest_gap, full_last, token_stride, full_steps)
    return Method(Taylor(order) if direction == "taylor" else Newton(order), schedule, "RCS")


def _newton(order: int, interval: int, warmup: int = 2, phase: int | None = None) -> Method:
    return Method(Newton(order), Interval(interval, warmup, phase), "Newton")


def _linear(interval: int, weight: float = 1.0, warmup: int = 2, phase: int | None = None) -> Method:
    return Method(Linear(weight), Interval(interval, warmup, phase), "Linear")


def _full() -> Method:
    return Method(Reuse(), Always(), "full")


def _plan(full_steps: list[int], order: int = 2, direction: Form = "taylor", norm: Norm = "sample") -> Method:
    return Method(Relational(order, direction, norm), Plan(full_steps), "RFE on a plan")


def _preset(name: str) -> Method:
    return Preset.named(name).method


def chosen_method(
    method: Method | Preset | str | None = None,
    forecaster: Forecaster | None = None,
    schedule: Schedule | None = None,
    full_steps: int | None = None,
    speedup: float | None = None,
) -> Method:
    """The method that is asked for in one of these ways, by default `auto()`, with its budget.

    Raises:
        TypeError: two ways at once, a schedule alone, or something else than a method.
        ValueError: a text that names none, or a budget that does not go with the method.
    """
    if method is None and forecaster is None:
        if schedule is not None:
            raise TypeError("a schedule needs a forecaster beside it: forecaster=relcache.Taylor(1), for example")
        return auto().with_budget(full_steps, speedup)
    if forecaster is not None:
        if method is not None:
            raise TypeError("take either a method, or forecaster= and schedule=, not both")
        return Method(forecaster, Growing() if schedule is None else schedule).with_budget(full_steps, speedup)
    if schedule is not None:
        raise TypeError("take either a method, or forecaster= and schedule=, not both")
    if isinstance(method, str):
        method = method_from_text(method)
    if isinstance(method, Preset):
        method = method.method
    if not isinstance(method, Method):
        raise TypeError(f"the method is relcache.auto(...), RFC(...) or the like, a preset or a text; got {method!r}")
    return method.with_budget(full_steps, speedup)


NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
HELD = ("granularity", "cache_dtype", "offload", "memory_limit", "corrector", "finer")  # options that every method has
BY_NAME: dict[str, Callable[..., Method]] = {
    "auto": auto,
    "full": _full,
    "fora": FORA,
    "linear": _linear,
    "taylorseer": TaylorSeer,
    "newton": _newton,
    "rfe": RFE,
    "rcs": RCS,
    "rfc": RFC,
    "plan": _plan,
    "preset": _preset,
}


def method_from_config(config: Mapping[str, Any]) -> Method:
    """The method that `config` describes: `{"method": "rfc", "order": 2, "threshold": 0.12}`.

    Raises:
        ValueError: no "method", an unknown one, an unknown option (the message names the nearest right one), a missing
            option, or a value that the method refuses.
    """
    options = dict(config)
    if "method" not in options:
        raise ValueError(f"a method's config has the key 'method', one of {', '.join(BY_NAME)}; got {sorted(options)}")
    name = str(options.pop("method")).lower()
    if name not in BY_NAME:
        raise ValueError(unknown("method", name, BY_NAME))
    build = BY_NAME[name]
    held = {name: options.pop(name) for name in HELD if name in options}
    if "corrector" in held:
        held["corrector"] = corrector_from(held["corrector"])
    parameters = inspect.signature(build).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(unknown(f"option of {name}", option, [*parameters, *HELD]))
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in options]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}: for example {name}:" + ",".join(f"{m}=…" for m in missing)
        )
    return replace(build(**options), **held)


def corrector_from(value: Any) -> Corrector | None:
    """The corrector that a config names: "replay", "none", or the options of `Replay` as a table.

    Raises:
        ValueError: it is neither, or an option that `Replay` has not.
    """
    if isinstance(value, Corrector) or value is None:
        return value
    if isinstance(value, Mapping):
        known = inspect.signature(Replay).parameters
        for option in value:
            if option not in known:
                raise ValueError(unknown("option of the corrector", str(option), known))
        return Replay(**value)
    if value == "replay":
        return Replay()
    if value == "none":
        return None
    raise ValueError(f'the corrector is "replay", "none", or {{"degree": 1, "theta": 1}}, got {value!r}')


def method_from_text(text: str) -> Method:
    """The method that a command line names: `rfc:order=2,threshold=0.12`, `fora:interval=4`, `full`.

    Values are read by `value_from_text`.

    Raises:
        ValueError: as `method_from_config`, or text that is not of this form.
    """
    return method_from_config(config_from_text(text))


def config_from_text(text: str) -> dict[str, Any]:
    """`name:key=value,…` as a config for `method_from_config`; a list is written `full_steps=[0,1,5]`.

    Raises:
        ValueError: a part without "=", an option given twice, or a bracket that is not closed.
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
    """The number that `text` writes (1e-2, 1E5, .5, 5., -1, +1), else what it is as JSON, else the text itself."""
    if NUMBER.fullmatch(text):
        try:
            return int(text)
        except ValueError:  # not whole, or longer than Python reads
            return float(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def split_list(text: str, whole: str | None = None) -> list[str]:
    """Return the parts of a comma-separated list; a comma within brackets or braces belongs to its part.

    Raises:
        ValueError: a bracket that is not closed; the message quotes `whole`, of which `text` is a part.
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
