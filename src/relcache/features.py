"""How features go into a unit's modules and come out of them: which argument, which dimension, which form.

Knows the parts of specs; nothing of caching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from relcache.models.base import Layout, Part, argument_place, first_argument

Place = tuple[str, "int | None"]
"""Name of an argument, and its place among the positional ones."""


def stream_places(module: nn.Module, part: Part) -> list[Place]:
    """Name of each stream's argument, and its place among the positional arguments of the module's forward."""
    names = part.streams or (first_argument(module.forward) or "hidden_states",)
    places = [(name, argument_place(module.forward, name)) for name in names]
    if places[0][1] is None:
        places[0] = (names[0], 0)  # a wrapper that takes *args hands the features on as its first
    return places


def given_streams(streams: list[Place], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor | None]:
    """The tensor that each stream's argument was given, None where it was none."""
    given = []
    for name, place in streams:
        value = kwargs.get(name)
        if value is None and place is not None and place < len(args):
            value = args[place]
        given.append(value if isinstance(value, Tensor) else None)
    return given


def to_rows(features: Tensor, layout: Layout, rows: int) -> Tensor:
    """A view of `features` whose first dimension is the batch of `rows` samples.

    Raises:
        ValueError: "folded" features whose first dimension is no multiple of `rows`.
    """
    if layout == "rows":
        return features
    if layout == "tokens first":
        return features.transpose(0, 1)
    if layout == "packed":
        return features.unsqueeze(0)
    if features.shape[0] % rows:
        raise ValueError(f"features of shape {tuple(features.shape)} do not fold into a batch of {rows}")
    return features.unflatten(0, (rows, features.shape[0] // rows))


def counted(features: Tensor, valid: Tensor | None, own: bool = False) -> Tensor:
    """`features`, (batch, tokens, channels), with zeros where `valid`, (batch, tokens), is not, if that is given.

    They are written over if they are the cache's `own`.
    """
    if valid is None or valid.shape != features.shape[:2]:
        return features
    padding = ~valid[..., None]
    return features.masked_fill_(padding, 0.0) if own else features.masked_fill(padding, 0.0)


def from_rows(features: Tensor, layout: Layout) -> Tensor:
    """The inverse of `to_rows`."""
    if layout == "rows":
        return features
    if layout == "tokens first":
        return features.transpose(0, 1).contiguous()
    if layout == "packed":
        return features.squeeze(0)
    return features.flatten(0, 1)


def have_one_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same features."""
    return a.shape == b.shape and a.untyped_storage()._cdata == b.untyped_storage()._cdata


def form_of(output: Any) -> tuple[Callable[..., Any], list[bool]] | None:
    """How a block returns its streams: None for one tensor, else the type, and which of its entries are tensors."""
    return None if isinstance(output, Tensor) else (type(output), [entry is not None for entry in output])


def handed_on(form: Any, part: Part, given: list[Tensor | None]) -> Any:
    """What a block returns that does nothing: its streams in the form that it returns them in."""
    if form is None:
        return given[0]
    kind, present = form
    places = part.returns or range(len(given))
    by_place = dict(zip(places, given, strict=True))
    return kind(by_place[place] if there else None for place, there in enumerate(present))


def token_dimension(part: Part) -> int:
    """The dimension in which the tokens of a part's features lie."""
    return 0 if part.layout in ("tokens first", "packed") else 1
