"""Z-Image (Alibaba, arXiv 2511.22699): refiner of the noisy image, then blocks over image and text. Samples and texts
are lists."""

from collections.abc import Mapping
from typing import Any

import torch

from relcache.models.inputs import call, filled, random, several
from relcache.models.spec import ModelSpec

MULTIPLE = 32  # the model itself pads the tokens of each text and image to a multiple of this


def _valid(arguments: Mapping[str, Any], tokens: int) -> torch.Tensor | None:
    """Return the tokens that count: image, text, then padding. For lists of images (editing) they are unknown."""
    images, texts = arguments["x"], arguments["cap_feats"]
    if isinstance(images[0], list):
        return None
    side, frames = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    patches = [image[0].numel() // (side * side * frames) for image in images]
    pairs = zip(patches, texts, strict=True)
    lengths = [sum(-(-count // MULTIPLE) * MULTIPLE for count in (number, len(text))) for number, text in pairs]
    if len(set(lengths)) == 1:
        return None
    positions = torch.arange(tokens, device=images[0].device)
    return torch.stack([positions < length for length in lengths])


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
    inputs=call(
        x=several("batch", random("in_channels", "frames", "height", "width")),
        t=filled(0.5),
        cap_feats=several("batch", random("text", "cap_feat_dim")),
    ),
    text=512,  # at most: the pipeline drops the padding
)
