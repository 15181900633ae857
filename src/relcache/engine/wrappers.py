"""Modules around a transformer or around its blocks: which are looked through, and which cannot be.

Knows specs and the names that wrappers give to what they hold; imports none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from relcache.models.spec import ModelSpec, Part

COMPILED = "_orig_mod"
HIDING = {
    COMPILED: (
        "torch.compile(module), which hides what is inside: put the module itself back, and use module.compile(), or "
        "model.compile_repeated_blocks() for all blocks"
    ),
    "_fsdp_wrapped_module": (
        "FullyShardedDataParallel, which hides what is inside: use torch.distributed.fsdp.fully_shard(module), which "
        "leaves it in its place"
    ),
    "_checkpoint_wrapped_module": (
        "torch's checkpoint_wrapper, which is for training and hides what is inside: put the module itself back"
    ),
}
"""Wrappers, by the name under which they hold a module, and what to do in their place."""


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


def refuse_wrapped_units(spec: ModelSpec, model: nn.Module) -> None:
    """See that no wrapper is around the modules that `spec` names, or around what they lie in.

    Raises:
        ValueError: one does; the message says what to do in its place.
    """
    patterns = [pattern.split(".") for part in (spec.fine or spec).parts for pattern in _names(part)]
    for path, _ in model.named_modules():
        *outer, last = path.split(".")
        if last not in HIDING:
            continue
        if any(len(outer) <= len(pattern) and _fits(outer, pattern) for pattern in patterns):
            raise ValueError(f"{type(model).__name__}: {'.'.join(outer)} is wrapped by {HIDING[last]}")


def _names(part: Part) -> Iterator[str]:
    if not part.entries:
        yield part.pattern.removesuffix("?")
    for piece in (*part.entries, part.exit) if part.entries else ():
        yield f"{part.pattern}.{piece}".removesuffix("?")


def _fits(outer: list[str], pattern: list[str]) -> bool:
    return all(piece == place or place == "*" for piece, place in zip(outer, pattern, strict=False))
