"""Command-line arguments in the form that pipelines and methods take."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from relcache.bench.comparison.benchmarks import SMALL, in_turn, shipped_benchmark
from relcache.bench.files import slug
from relcache.bench.sampling.pipelines import class_numbers, is_class_conditional, number_of_classes
from relcache.methods import value_from_text


def call_options(
    model: str | None, guidance: float | None, size: str | None, frames: int | None, more: list[str]
) -> dict[str, Any]:
    """Return the arguments of the pipeline's call: a shipped model's own, overwritten by the command line.

    Raises:
        ValueError: a wrong guidance, size or option.
    """
    shipped = shipped_benchmark(model)
    options = {**shipped.options, "guidance_scale": shipped.guidance} if shipped else {}
    if guidance is not None:
        if not math.isfinite(guidance):
            raise ValueError(f"--guidance is a finite number, got {guidance}")
        options["guidance_scale"] = guidance
    if size is not None:
        parts = size.lower().split("x")
        if len(parts) > 2 or not all(re.fullmatch("[1-9][0-9]{0,6}", part) for part in parts):
            raise ValueError(f"--size takes HEIGHTxWIDTH such as 480x832, or one number, got {size!r}")
        options |= {"height": int(parts[0]), "width": int(parts[-1])}
    if frames is not None:
        options["num_frames"] = frames
    for text in more:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--option takes name=value, got {text!r}")
        options[name.strip()] = value_from_text(value)
    return options


def named_conditions(
    pipeline: Any, prompts: list[str] | None, classes: str | None
) -> tuple[list[int | str], list[str]]:
    """Return the pipeline's conditions, prompts or class labels, and a name for each file.

    Raises:
        ValueError: prompts for a pipeline that takes classes, or classes for one that takes prompts.
    """
    kind = type(pipeline).__name__
    if not is_class_conditional(pipeline):
        if classes is not None or not prompts:
            raise ValueError(f"{kind} takes --prompt, not --classes; give one prompt or more")
        return list(prompts), [slug(prompt) for prompt in prompts]
    if prompts:
        raise ValueError(f"{kind} takes --classes, not --prompt")
    first = [str(number) for number in range(min(10, number_of_classes(pipeline)))]
    labels = class_numbers(pipeline, classes.split(",") if classes is not None else first)
    names = {number: name for name, number in pipeline.labels.items()}
    return list(labels), [slug(names.get(label, str(label))) for label in labels]


def calibration_conditions(pipeline: Any, conditions: list[int | str], number: int) -> list[int | str]:
    """Return `number` conditions to calibrate on: all classes in turn, or the prompts `conditions` in turn."""
    return in_turn(range(number_of_classes(pipeline)) if is_class_conditional(pipeline) else conditions, number)


def conditions_for(model: str, prompts: list[str] | None, seeds: Sequence[int]) -> list[int | str]:
    """Return a condition for each seed: `prompts` in turn, else from a shipped model's benchmark, else classes."""
    if prompts:
        return [*in_turn(prompts, len(seeds))]
    return (shipped_benchmark(model) or SMALL["class"]).conditions(seeds)
