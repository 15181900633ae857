"""FasterCache and Pyramid Attention Broadcast of diffusers: they skip attention alone, so all steps are full."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relcache.bench.rivals.base import Options, Rival, hooked, only_transformer
from relcache_rivals.timesteps import TRAIN_TIMESTEPS, watched_timestep

BATCHED_GUIDANCE = ("DiTTransformer2DModel",)  # transformers whose pipelines guide within a batch, conditional first
GUIDANCE_RANGE = 5  # steps for each one that computes the unconditional half


class AttentionSkip(Rival):
    """A cache that computes attention once in `skip_range` steps."""

    group: ClassVar[str] = "diffusers"
    budget: ClassVar[str] = "skip_range"
    values: ClassVar[tuple[float, ...]] = (2, 3, 4, 6)


class PyramidAttentionBroadcast(AttentionSkip):
    """Pyramid Attention Broadcast: within a range of timesteps, it computes attention once in `skip_range` steps."""

    source: ClassVar[str] = "diffusers.hooks.PyramidAttentionBroadcastConfig; arXiv 2408.12588"

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        model = only_transformer(pipeline_or_model)
        with watched_timestep(model) as timestep:
            config = PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=int(options["skip_range"]),
                spatial_attention_timestep_skip_range=(100, 800), current_timestep_callback=timestep,
            )  # fmt: skip
            with hooked(model, lambda: apply_pyramid_attention_broadcast(model, config)):
                yield


class FasterCache(AttentionSkip):
    """FasterCache: it extrapolates attention, and where guidance is half of a batch, estimates the unconditional half.

    Where there is such a half, it skips attention in the steps that skip the half, and at most once in 5 steps computes
    that half.
    """

    source: ClassVar[str] = "diffusers.hooks.FasterCacheConfig; arXiv 2410.19355"

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        from diffusers.hooks import FasterCacheConfig, apply_faster_cache
        from diffusers.hooks import faster_cache as package

        model = only_transformer(pipeline_or_model)
        batched = type(model).__name__ in BATCHED_GUIDANCE
        names = (*package._UNCOND_COND_INPUT_KWARGS_IDENTIFIERS, "class_labels")
        with watched_timestep(model) as timestep, _conditional_last(model) if batched else nullcontext():
            config = FasterCacheConfig(
                spatial_attention_block_skip_range=int(options["skip_range"]), tensor_format="BCHW",
                spatial_attention_timestep_skip_range=(-1, 681), current_timestep_callback=timestep,
                attention_weight_callback=lambda _: 1 - timestep() / TRAIN_TIMESTEPS,  # from 0 to 1, as in the paper
                unconditional_batch_skip_range=GUIDANCE_RANGE,
                unconditional_batch_timestep_skip_range=(-1, 641), is_guidance_distilled=not batched,
                _unconditional_conditional_input_kwargs_identifiers=names,
            )  # fmt: skip
            with warnings.catch_warnings(), _errors_only(package.logger):
                warnings.filterwarnings("ignore", message="torch.meshgrid")  # an argument that the package leaves out
                with hooked(model, lambda: apply_faster_cache(model, config)):
                    yield

    def unfit(self, pipeline_or_model: Any) -> str:
        if isinstance(pipeline_or_model, nn.Module):
            return "FasterCache depends on the timesteps and the guidance of a run: it needs a pipeline"
        return ""


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    """Suppress the logger's warnings; the package warns at each use that the method is experimental."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _conditional_last(model: nn.Module) -> Iterator[None]:
    """Exchange the halves of the batch around each call, as FasterCache expects the conditional half to be the second.

    Raises:
        ValueError: in a call whose halves differ: there is no guidance.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        halves = (args[0] if args else kwargs["hidden_states"]).chunk(2)
        if len(halves) < 2 or not torch.equal(*halves):
            raise ValueError("FasterCache estimates the unconditional half of a batch: set a guidance scale above 1")
        return tuple(map(_exchanged, args)), {name: _exchanged(value) for name, value in kwargs.items()}

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(map(_exchanged, output))
        output.sample = _exchanged(output.sample)
        return output

    hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _exchanged(value: Any) -> Any:
    """Return a tensor with the halves of its batch exchanged; return anything else as it is."""
    return torch.cat(value.chunk(2)[::-1]) if isinstance(value, Tensor) else value
