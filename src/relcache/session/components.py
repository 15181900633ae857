"""Inspect a pipeline: its transformers, the size of its latents, and other active caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from relcache.engine.wrappers import unwrapped
from relcache.models import SPECS, ModelSpec


class Pixels(NamedTuple):
    """Pixels per latent along height and width, and frames per latent along time."""

    spatial: int
    temporal: int

    @classmethod
    def of(cls, pipeline: Any) -> Pixels:
        """Return the sizes from the attributes of a diffusers pipeline, else from the blocks of its VAE."""
        spatial = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
        temporal = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")

        def first(names: tuple[str, ...], default: int) -> int:
            return next((int(value) for name in names if (value := getattr(pipeline, name, None))), default)

        blocks = getattr(getattr(getattr(pipeline, "vae", None), "config", None), "block_out_channels", None)
        return cls(first(spatial, 2 ** (len(blocks) - 1) if blocks else 8), first(temporal, 4))

    def latents(self, height: int, width: int, frames: int) -> tuple[int, int, int]:
        """Return height, width and frames of the latents. Video autoencoders encode the first frame by itself."""
        return height // self.spatial, width // self.spatial, (frames - 1) // self.temporal + 1


def find_transformers(model_or_pipe: Any, spec: ModelSpec | None = None) -> tuple[dict[str, nn.Module], Any]:
    """Return the transformers by their names in the pipeline, and the pipeline, or None for a bare transformer.

    A wrapper that contains only a transformer is removed, if the transformer has a spec or is of the class of `spec`.
    """
    known = {spec.class_name} if spec is not None else {known.class_name for known in SPECS}
    if isinstance(model_or_pipe, nn.Module):
        return {"transformer": unwrapped(model_or_pipe, known)}, None
    components = getattr(model_or_pipe, "components", None)
    components = components if isinstance(components, dict) else {}
    named = {"transformer": getattr(model_or_pipe, "transformer", None), **components}
    models = {name: value for name, value in named.items() if "transformer" in name and isinstance(value, nn.Module)}
    if models:
        return {name: unwrapped(model, known, name) for name, model in models.items()}, model_or_pipe
    if isinstance(model_or_pipe, type):
        raise TypeError(f"enable takes an instance, got the class {model_or_pipe.__name__}")
    name = type(model_or_pipe).__name__
    if hasattr(model_or_pipe, "transformer"):
        raise TypeError(f"{name} cannot be enabled: it has no transformer, but {model_or_pipe.transformer!r}")
    has_unet = getattr(model_or_pipe, "unet", None) is not None
    raise TypeError(
        f"enable takes a diffusers pipeline with a transformer, or the transformer itself; got {name}: "
        + ("it has a UNet, not a transformer" if has_unet else "it has no transformer")
    )


def refuse_other_caches(models: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if a cache of diffusers is active."""
    for model in models.values():
        if getattr(model, "is_cache_enabled", False):
            active = type(getattr(model, "_cache_config", None)).__name__
            raise ValueError(
                f"{type(model).__name__} already has a cache of diffusers active ({active}): call "
                "transformer.disable_cache() first, two caches would skip each other's work"
            )
