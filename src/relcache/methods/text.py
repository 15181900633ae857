"""Methods as configs and as text: `rfc:order=2,threshold=0.12`, read and printed alike."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from relcache.checks import unknown
from relcache.correctors import Corrector
from relcache.forecasters import Forecaster
from relcache.method import Method
from relcache.methods.named import BY_NAME, OF_INTERVAL, auto, corrector_from
from relcache.presets import Preset
from relcache.schedules import Growing, Interval, Schedule

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
    return method.with_budget(full_steps=full_steps, speedup=speedup)


def method_from_text(text: str) -> Method:
    """Return the method for a text on the command line: `rfc:order=2,threshold=0.12`, `fora:interval=4`, `full`.

    Raises:
        ValueError: as in `method_from_config` and `config_from_text`.
    """
    return method_from_config(config_from_text(text))


def method_to_text(method: Method) -> str:
    """Return the text that `method_from_text` reads as this method, with the options that are not defaults.

    A preset, and parts that no text can name, give the method's own name.
    """
    names = [name for name in BY_NAME if name != "preset" and method.made_for is None]
    for name in sorted(names, key=lambda name: BY_NAME[name].__name__ == "build"):  # builders of the literature first
        try:
            text = _text_by(name, method)
            if replace(method_from_text(text), name=method.name) == method:
                return text
        except (TypeError, ValueError):  # the options are of another method, or have no text
            continue
    return method.name


def _text_by(name: str, method: Method) -> str:
    """Return the text of a method as the builder `name` would make it."""
    parameters = inspect.signature(BY_NAME[name]).parameters
    usual = {option: parameter.default for option, parameter in parameters.items()}
    options = {option: _option_of(method, option, default) for option, default in usual.items()}
    if options.get("schedule") is not None:
        options = {option: value for option, value in options.items() if option not in OF_INTERVAL}
    options = {option: value for option, value in options.items() if value != usual[option]}
    built = BY_NAME[name](**options)
    shared = {option: getattr(method, option) for option in SHARED if option not in usual}
    options |= {option: value for option, value in shared.items() if value != getattr(built, option)}
    values = ",".join(f"{option}={_value_to_text(value)}" for option, value in options.items())
    return f"{name}:{values}" if values else name


def _option_of(method: Method, option: str, default: Any) -> Any:
    """Return the value of a builder's option, found in the parts of a method."""
    if option == "direction":
        return method.forecaster.expansion.form
    if option == "schedule":
        return None if isinstance(method.schedule, Interval) else method.schedule
    parts = (method, method.forecaster, method.schedule)
    return next((getattr(part, option) for part in parts if hasattr(part, option)), default)


def _value_to_text(value: Any) -> str:
    """Return `value` as `value_from_text` reads it; a schedule or corrector as its name or a table of its options."""
    if value is None:
        return "none"
    if isinstance(value, (Schedule, Corrector)):
        fields = inspect.signature(type(value)).parameters
        options = {key: getattr(value, key) for key in fields if getattr(value, key) != fields[key].default}
        name = type(value).__name__.lower()
        return json.dumps({"name": name, **options}, separators=(",", ":")) if options else name
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def config_from_text(text: str) -> dict[str, Any]:
    """Return `name:key=value,…` as a config for `method_from_config`; a list is written `full_steps=[0,1,5]`.

    `rfc-1` stands for `rfc:order=1`, and so with other methods that have an order.

    Raises:
        ValueError: a part lacks "=", an option comes twice, or a bracket is not closed.
    """
    name, _, rest = text.partition(":")
    base, dash, order = name.strip().lower().rpartition("-")
    has_order = dash and base in BY_NAME and order.isascii() and order.isdigit()
    config: dict[str, Any] = {"method": base, "order": int(order)} if has_order else {"method": name.strip().lower()}
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
