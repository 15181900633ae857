"""Z-Image (Alibaba, arXiv 2511.22699): refiner of the noisy image, then blocks over image and text. Samples and texts
are lists."""

from collections.abc import Mapping
from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size

MULTIPLE = 32  # of tokens, to which the model itself fills up each text and each picture


def _valid(arguments: Mapping[str, Any], tokens: int) -> torch.Tensor | None:
    """The picture, the text behind it, then padding; of lists of pictures (editing) that is not known."""
    pictures, texts = arguments["x"], arguments["cap_feats"]
    if isinstance(pictures[0], list):
        return None
    side, frames = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    patches = [picture[0].numel() // (side * side * frames) for picture in pictures]
    pairs = zip(patches, texts, strict=True)
    lengths = [sum(-(-count // MULTIPLE) * MULTIPLE for count in (number, len(text))) for number, text in pairs]
    if len(set(lengths)) == 1:
        return None
    places = torch.arange(tokens, device=pictures[0].device)
    return torch.stack([places < length for length in lengths])


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
    padding=(("layers*:*", _valid),),
    inputs=_inputs,
    text=512,  # at most: the pipeline drops the padding
)
