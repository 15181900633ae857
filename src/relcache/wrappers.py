"""Modules around a transformer or around its blocks: which are looked through, and which cannot be.

Knows specs and the names that wrappers give to what they hold; imports none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from relcache.models.base import ModelSpec, Part

COMPILED = "_orig_mod"
BLOCK_WRAPPERS = {
    COMPILED: (
        "torch.compile(block), which hides the block's modules: put the block itself back, and use block.compile() or "
        "model.compile_repeated_blocks()"
    ),
    "_fsdp_wrapped_module": (
        "FullyShardedDataParallel, which hides the block's modules: use torch.distributed.fsdp.fully_shard(block), "
        "which leaves them in their places"
    ),
    "_checkpoint_wrapped_module": (
        "torch's checkpoint_wrapper, which is for training and hides the block's modules: put the block itself back"
    ),
}
"""What holds a block, by the name under which it does, and what to do in its place."""


def unwrapped(model: nn.Module, known: Collection[str], name: str = "") -> nn.Module:
    """The transformer, of a class named in `known`, that `model` is or has nothing beside.

    So PEFT's PeftModel, DistributedDataParallel and the like are looked through: they call the transformer that they
    hold. `model` itself where it holds none.

    Args:
        name: the model's name in a pipeline, for the error.

    Raises:
        TypeError: a wrapper in which the transformer's calls cannot be told.
    """
    if _is_known(model, known):
        return model
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if _is_known(module, known) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    if hasattr(model, COMPILED) or any(COMPILED in path.split(".") for path in found):
        where = f" Set pipe.{name} = pipe.{name}._orig_mod first" if name else ""
        raise TypeError(f"torch.compile(model) gives a wrapper: call model.compile() instead, and enable model.{where}")
    if isinstance(model, nn.DataParallel):
        raise TypeError("DataParallel copies the model for each call: enable model.module, and run one on each device")
    if len(found) != 1:
        return model
    inner = next(iter(found.values()))
    own = {id(weight) for weight in model.parameters()} - {id(weight) for weight in inner.parameters()}
    return model if own else inner


def _is_known(module: nn.Module, known: Collection[str]) -> bool:
    return any(kind.__name__ in known for kind in type(module).__mro__)


def refuse_wrapped_blocks(spec: ModelSpec, model: nn.Module) -> None:
    """See that no wrapper stands between `model` and the modules that `spec` names.

    Raises:
        ValueError: one does; the message says what to do in its place.
    """
    patterns = [pattern.split(".") for part in (spec.fine or spec).parts for pattern in _names(part)]
    for path, _ in model.named_modules():
        *outer, last = path.split(".")
        if last not in BLOCK_WRAPPERS:
            continue
        if any(len(outer) < len(pattern) and _fits(outer, pattern) for pattern in patterns):
            raise ValueError(f"{type(model).__name__}: {'.'.join(outer)} is wrapped by {BLOCK_WRAPPERS[last]}")


def _names(part: Part) -> Iterator[str]:
    if not part.entries:
        yield part.pattern.removesuffix("?")
    for piece in (*part.entries, part.exit) if part.entries else ():
        yield f"{part.pattern}.{piece}".removesuffix("?")


def _fits(outer: list[str], pattern: list[str]) -> bool:
    return all(piece == place or place == "*" for piece, place in zip(outer, pattern, strict=False))
