"""Unwrap a transformer, and refuse wrappers that hide its blocks.

Knows specs and the names under which wrappers store a module. Imports none of the wrappers.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from relcache.models.spec import ModelSpec

COMPILED = "_orig_mod"
HIDING = {
    COMPILED: (
        "torch.compile(module), which hides its contents: put the module itself back, and use module.compile(), or "
        "model.compile_repeated_blocks() for all blocks"
    ),
    "_fsdp_wrapped_module": (
        "FullyShardedDataParallel, which hides its contents: use torch.distributed.fsdp.fully_shard(module), which "
        "keeps the module where it is"
    ),
    "_checkpoint_wrapped_module": (
        "torch's checkpoint_wrapper, which is for training and hides its contents: put the module itself back"
    ),
}
"""The wrapper and the advice to the user, by the name under which it stores a module."""


def unwrapped(model: nn.Module, known: Collection[str], name: str = "") -> nn.Module:
    """Return the transformer in `model`, if it is the only one and the rest of `model` has no weights; else `model`.

    This unwraps PEFT's PeftModel, DistributedDataParallel and similar wrappers, which call the transformer.

    Args:
        known: class names of transformers.
        name: the model's name in a pipeline, for the error.

    Raises:
        TypeError: the calls of the transformer in this wrapper cannot be watched.
    """
    if is_of_class(model, known):
        return model
    transformers: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if is_of_class(module, known) and not any(path.startswith(f"{outer}.") for outer in transformers):
            transformers[path] = module
    if hasattr(model, COMPILED) or any(COMPILED in path.split(".") for path in transformers):
        where = f" Set pipe.{name} = pipe.{name}._orig_mod first" if name else ""
        raise TypeError(f"torch.compile(model) gives a wrapper: call model.compile() instead, and enable model.{where}")
    if isinstance(model, nn.DataParallel):
        raise TypeError("DataParallel copies the model for each call: enable model.module, and run one on each device")
    if len(transformers) != 1:
        return model
    inner = next(iter(transformers.values()))
    own = {id(weight) for weight in model.parameters()} - {id(weight) for weight in inner.parameters()}
    return model if own else inner


def is_of_class(module: nn.Module, names: Collection[str]) -> bool:
    """Return whether the class of `module` or one of its base classes has one of these `names`."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


def refuse_wrapped_units(spec: ModelSpec, model: nn.Module) -> None:
    """Check that nothing wraps the modules that `spec` names, or the modules around them.

    Raises:
        ValueError: a wrapper does.
    """
    patterns: list[str] = []
    for part in (spec.fine or spec).parts:
        pieces = (*part.entries, part.exit) if part.entries else ()
        patterns += [f"{part.pattern}.{piece}" for piece in pieces] or [part.pattern]
    wanted = [pattern.removesuffix("?").split(".") for pattern in patterns]
    for path, _ in model.named_modules():
        *outer, last = path.split(".")
        if last in HIDING and any(_begins_with(pattern, outer) for pattern in wanted):
            raise ValueError(f"{type(model).__name__}: {'.'.join(outer)} is wrapped by {HIDING[last]}")


def _begins_with(pattern: list[str], path: list[str]) -> bool:
    pairs = zip(path, pattern, strict=False)
    return len(path) <= len(pattern) and all(wanted in (piece, "*") for piece, wanted in pairs)
