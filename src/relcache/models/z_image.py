"""Z-Image (Alibaba, arXiv 2511.22699): refiner of the noisy image, then blocks over image and text. Samples and texts
are lists."""

from typing import Any

import torch

from relcache.models.base import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    latents = (config.in_channels, size.frames, size.height, size.width)
    return {
        "x": [torch.randn(latents) for _ in range(size.batch)],
        "t": torch.full((size.batch,), 0.5),
        "cap_feats": [torch.randn(size.text, config.cap_feat_dim) for _ in range(size.batch)],
    }


Z_IMAGE = ModelSpec(
    class_name="ZImageTransformer2DModel",
    modules=(
        "noise_refiner.*.attention",
        "noise_refiner.*.feed_forward",
        "layers.*.attention",
        "layers.*.feed_forward",
    ),
    conditioning=("cap_feats", "siglip_feats"),
    timestep="t",
    time_runs=1,
    inputs=_inputs,
    text=512,  # at most: the pipeline drops the padding
)
