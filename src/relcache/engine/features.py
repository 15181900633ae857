"""How features go into a unit's modules and come out of them: which argument, which dimension, which form.

Knows the parts of specs; nothing of caching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from relcache.models.patterns import argument_index, first_argument
from relcache.models.spec import Layout, Part

Place = tuple[str, "int | None"]
"""Name of an argument, and its place among the positional ones."""


def stream_places(module: nn.Module, part: Part) -> list[Place]:
    """Name of each stream's argument, and its place among the positional arguments of the module's forward."""
    names = part.streams or (first_argument(module.forward) or "hidden_states",)
    places = [(name, argument_index(module.forward, name)) for name in names]
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


def outputs_of(output: Any, name: str, part: Part) -> tuple[list[tuple[int, Tensor]], list[int | None] | None]:
    """The tensors of an output, each with its place in it, and the form that `Cell.form` describes.

    Raises:
        TypeError: not what the part's modules return.
    """
    if isinstance(output, Tensor):
        return [(0, output)], None
    several = isinstance(output, (tuple, list)) and all(isinstance(entry, (Tensor, type(None))) for entry in output)
    if not several or not len(part.streams):
        kinds = ", ".join(type(entry).__name__ for entry in output) if isinstance(output, (tuple, list)) else ""
        raise TypeError(
            f"{name} returned {type(output).__name__}{f' of {kinds}' if kinds else ''}; a cached "
            "module returns one tensor, joint attention (relcache.joint in the spec) a tuple of tensors"
        )
    found = [(place, entry) for place, entry in enumerate(output) if entry is not None]
    places = iter(range(len(found)))
    return found, [None if entry is None else next(places) for entry in output]


def stream_of(inputs: list[Tensor | None], place: int) -> Tensor:
    """The features that a unit was given as its input of this place."""
    features = inputs[place]
    if features is None:
        raise TypeError("a cached module was called without a tensor of features as its first input")
    return features


def stream_name(part: Part, source: int) -> str:
    """The name of a stream's argument, "" where the part names none."""
    return part.streams[source] if part.streams else ""


def source_of(part: Part, place: int, inputs: list[Tensor | None]) -> int:
    """Which input an output goes with: the one of its own place; an output beyond them goes with the first."""
    if part.returns:
        return part.returns.index(place)
    return place if place < len(inputs) and inputs[place] is not None else 0
