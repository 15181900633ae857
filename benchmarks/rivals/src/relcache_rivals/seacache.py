"""SeaCache of diffusers: the change of the latents decides, after a filter that keeps what is not yet noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from torch import Tensor, nn

from relcache.bench.rivals.base import Options, Rival, hooked, lists_of_blocks, only_transformer
from relcache_rivals.timesteps import TRAIN_TIMESTEPS, watched_timestep


@dataclass(frozen=True)
class SeaCache(Rival):
    """SeaCache; its threshold bounds the sum of the changes since the last full step.

    The package has adapters for two families, and a callback for others. Ours returns the latents of the call.

    Attributes:
        longest: the most steps that it skips in succession; 0 for no limit.
    """

    longest: int
    source: ClassVar[str] = "diffusers.hooks.SeaCacheConfig; arXiv 2602.18993"
    group: ClassVar[str] = "diffusers"
    one_call: ClassVar[bool] = True

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        from diffusers.hooks import SeaCacheConfig
        from diffusers.hooks.hooks import CacheContext, _set_cache_context
        from diffusers.hooks.sea_cache import apply_sea_cache

        model, scheduler = only_transformer(pipeline_or_model), pipeline_or_model.scheduler
        config = SeaCacheConfig(
            threshold=options["threshold"], max_consecutive_cached=self.longest, raw_vision_callback=_latents,
            power_exp=EXPONENTS[type(model).__name__],
        )  # fmt: skip
        indices = count()

        def before(*_: Any) -> None:
            at = {"step_index": next(indices), "num_inference_steps": steps, "sigma": _sigma(scheduler, timestep())}
            _set_cache_context(model, CacheContext("run", **at))

        with watched_timestep(model) as timestep, hooked(model, lambda: apply_sea_cache(model, config)):
            hook = model.register_forward_pre_hook(before)
            try:
                yield
            finally:
                hook.remove()

    def unfit(self, pipeline_or_model: Any) -> str:
        model = only_transformer(pipeline_or_model)
        if getattr(pipeline_or_model, "scheduler", None) is None:
            return "SeaCache filters by the noise level of each step, which is the scheduler's: it needs a pipeline"
        if type(model).__name__ not in LATENTS:
            return f"SeaCache needs the latents of a call, known of {', '.join(LATENTS)}, not of {type(model).__name__}"
        if sum(map(len, lists_of_blocks(model).values())) < 2:
            return "SeaCache skips from the first block to the last: it needs 2 blocks or more"
        return ""


def _sigma(scheduler: Any, timestep: float) -> float:
    """Return the share of noise in signal plus noise, from 0 to 1, that the scheduler has at a timestep.

    The filter depends on the ratio of noise to signal alone, so this also describes schedulers that keep the variance.
    """
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is None:
        return timestep / TRAIN_TIMESTEPS  # flow matching
    signal, noise = float(kept[int(timestep)]) ** 0.5, float(1 - kept[int(timestep)]) ** 0.5
    return noise / (signal + noise)


def _latents(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return each sample's latents in a call, (channels, frames, height, width)."""
    sample = args[0] if args else kwargs["hidden_states"]
    return list(LATENTS[type(model).__name__](sample, kwargs).unbind())


def _unpacked(sample: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return FLUX's tokens, each of 2 x 2 latents, as (batch, channels, 1, height, width)."""
    *_, height, width = (int(last) + 1 for last in kwargs["img_ids"].amax(0))
    split = sample.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width))
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[:, :, None]


LATENTS: dict[str, Callable[[Tensor, dict[str, Any]], Tensor]] = {
    "DiTTransformer2DModel": lambda sample, kwargs: sample[:, :, None],
    "FluxTransformer2DModel": _unpacked,
    "HunyuanVideoTransformer3DModel": lambda sample, kwargs: sample,
}
"""The latents of a call, (batch, channels, frames, height, width), by transformer."""
EXPONENTS = {"DiTTransformer2DModel": 2.0, "FluxTransformer2DModel": 2.0, "HunyuanVideoTransformer3DModel": 3.0}
"""The authors' exponents of the power of clean signals: 2 for pictures, 3, the package's default, for clips."""
