"""Match the names of modules and arguments in a spec, and find the names nearest to a wrong one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from torch import nn

from relcache.checks import nearest


def block_numbers(pattern: str, name: str) -> tuple[int, ...] | None:
    """Return the number for each `*` of `pattern` in the module's `name`, None if they do not match."""
    pieces = pattern.removesuffix("?").split("*")
    match = re.fullmatch(r"(\d+)".join(re.escape(piece) for piece in pieces), name)
    return tuple(int(number) for number in match.groups()) if match else None


def pattern_of(name: str) -> str:
    """Return the module's `name` with `*` for each number."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def modules_like(pattern: str, model: nn.Module) -> str:
    """Return the patterns of `model`'s modules that are nearest to `pattern`, in words."""
    known = sorted({pattern_of(name) for name, _ in model.named_modules() if name})
    return ", ".join(nearest(pattern, known, most=5, cutoff=0.3) or known[:5]) or "no modules at all"


def check_argument(class_name: str, forward: Callable[..., object], name: str, owner: str) -> None:
    """Raise ValueError unless the `forward` of `owner` takes the argument `name` of the spec of `class_name`."""
    parameters = inspect.signature(forward).parameters
    if name in parameters or any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
        return
    known = [key for key in parameters if key != "self"]
    near = nearest(name, known, cutoff=0.6)
    raise ValueError(
        f"the spec of {class_name} names the argument {name!r}, which {owner} does not take"
        f"{f'; did you mean {near[0]!r}?' if near else f'; it takes {known}'}"
    )


def first_argument(forward: Callable[..., object]) -> str:
    """Return the name of the first argument of a bound `forward`, "" if it has none."""
    return next(iter(inspect.signature(forward).parameters), "")


def argument_index(forward: Callable[..., object], name: str) -> int | None:
    """Return the index of the argument `name` among the positional arguments of a bound `forward`."""
    parameters = inspect.signature(forward).parameters
    positional = [key for key, value in parameters.items() if value.kind in (value.POSITIONAL_OR_KEYWORD,
                                                                             value.POSITIONAL_ONLY)]  # fmt: skip
    return positional.index(name) if name in positional else None
