"""Read the features that enter and leave a unit's modules: their arguments, layout and form.

Knows the parts of specs, nothing of caching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from relcache.models.patterns import argument_index, first_argument
from relcache.models.spec import Layout, Part

Argument = tuple[str, "int | None"]
"""The name of an argument, and its index among the positional arguments."""


def stream_arguments(module: nn.Module, part: Part) -> list[Argument]:
    """Return the name and the positional index of each stream's argument in the module's forward."""
    names = part.streams or (first_argument(module.forward) or "hidden_states",)
    arguments = [(name, argument_index(module.forward, name)) for name in names]
    if arguments[0][1] is None:
        arguments[0] = (names[0], 0)  # a wrapper with *args takes the features first
    return arguments


def stream_inputs(streams: list[Argument], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor | None]:
    """Return the tensor passed for each stream's argument, in the module's layout and dtype, or None."""
    tensors: list[Tensor | None] = []
    for name, index in streams:
        value = kwargs.get(name)
        if value is None and index is not None and index < len(args):
            value = args[index]
        tensors.append(value if isinstance(value, Tensor) else None)
    return tensors


def to_rows(features: Tensor, layout: Layout, rows: int) -> Tensor:
    """Return a view of `features` as (rows, tokens, channels), or (rows, channels).

    Raises:
        ValueError: the first dimension of "folded" features is no multiple of `rows`.
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


def zero_padding(features: Tensor, valid: Tensor | None, own: bool = False) -> Tensor:
    """Return `features` (batch, tokens, channels) with zeros where the mask `valid` (batch, tokens) is false.

    With `own` the features are overwritten. A mask that is None or of another shape is ignored.
    """
    if valid is None or valid.shape != features.shape[:2]:
        return features
    padding = ~valid[..., None]
    return features.masked_fill_(padding, 0.0) if own else features.masked_fill(padding, 0.0)


def from_rows(features: Tensor, layout: Layout) -> Tensor:
    """Return features (rows, tokens, channels) in the module's layout: the inverse of `to_rows`."""
    if layout == "rows":
        return features
    if layout == "tokens first":
        return features.transpose(0, 1).contiguous()
    if layout == "packed":
        return features.squeeze(0)
    return features.flatten(0, 1)


def is_distributed(output: Any) -> bool:
    """Return whether a module's output is distributed over processes, as by tensor parallelism."""
    return isinstance(output, Tensor) and hasattr(output, "device_mesh")


def own_part(features: Any) -> Any:
    """Return the part of distributed features that is on this process; other features as they are."""
    return features.to_local() if is_distributed(features) else features


def whole(output: Any) -> Any:
    """Return a distributed output with the whole of it on each process."""
    from torch.distributed.tensor import Replicate  # imported where it is needed: it takes half a second

    return output.redistribute(placements=[Replicate()] * output.device_mesh.ndim)


def replicated(output: Any, mesh: Any) -> Any:
    """Return an output that each process of `mesh` has, in the form of a distributed one; without a mesh as it is."""
    if mesh is None:
        return output
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(output, mesh, [Replicate()] * mesh.ndim, run_check=False)


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and share memory."""
    return a.shape == b.shape and a.untyped_storage()._cdata == b.untyped_storage()._cdata


def with_newest_of(stack: Tensor, state: Any, input: Tensor) -> Any:
    """Return `state` with its leaf `input` (batch, …) replaced by its equal, the newest term of the error signal.

    `stack` is (batch, order + 1, …), in the dtype of the input.
    """
    return tree_map_only(Tensor, lambda leaf: stack[:, 0] if leaf is input else leaf, state)


def form_of(output: Any) -> tuple[Callable[..., Any], list[bool]] | None:
    """Return None for one tensor; else the type of the output, and whether each entry is a tensor."""
    return None if isinstance(output, Tensor) else (type(output), [entry is not None for entry in output])


def inputs_as_output(form: Any, part: Part, inputs: list[Tensor | None]) -> Any:
    """Return a block's inputs, of any shape, in the form of its output, as if the block changed nothing."""
    if form is None:
        return inputs[0]
    kind, present = form
    by_index = dict(zip(part.returns or range(len(inputs)), inputs, strict=True))
    return kind(by_index[index] if is_tensor else None for index, is_tensor in enumerate(present))


def token_dimension(part: Part) -> int:
    """Return the dimension of the tokens in a part's features."""
    return 0 if part.layout in ("tokens first", "packed") else 1


def outputs_of(output: Any, name: str, part: Part) -> tuple[list[tuple[int, Tensor]], list[int | None] | None]:
    """Return the tensors of an output, of any shape and dtype, with their indices, and the form as in `Cell.form`.

    Raises:
        TypeError: the output is neither a tensor nor, for joint attention, a tuple of tensors.
    """
    if isinstance(output, Tensor):
        return [(0, output)], None
    is_joint = isinstance(output, (tuple, list)) and all(isinstance(entry, (Tensor, type(None))) for entry in output)
    if not is_joint or not len(part.streams):
        kinds = ", ".join(type(entry).__name__ for entry in output) if isinstance(output, (tuple, list)) else ""
        raise TypeError(
            f"{name} returned {type(output).__name__}{f' of {kinds}' if kinds else ''}; a cached "
            "module returns one tensor, joint attention (relcache.joint in the spec) a tuple of tensors"
        )
    tensors = [(index, entry) for index, entry in enumerate(output) if entry is not None]
    streams = iter(range(len(tensors)))
    return tensors, [None if entry is None else next(streams) for entry in output]


def stream_of(inputs: list[Tensor | None], index: int) -> Tensor:
    """Return the input `index` of a unit, (batch, tokens, channels) or (batch, channels), in its own dtype.

    Raises:
        TypeError: the call did not pass it.
    """
    features = inputs[index]
    if features is None:
        raise TypeError("a cached module was called without a tensor of features as its first input")
    return features


def stream_name(part: Part, source: int) -> str:
    """Return the name of a stream's argument; "" if the part has no names."""
    return part.streams[source] if part.streams else ""


def source_of(part: Part, index: int, inputs: list[Tensor | None]) -> int:
    """Return the index of the input that belongs to the output `index`: its own, or else the first."""
    if part.returns:
        return part.returns.index(index)
    return index if index < len(inputs) and inputs[index] is not None else 0
