"""FIBO 2 (Bria AI, 2026): Z-Image's blocks, a refiner of the noisy tokens first; some also attend to the text encoder.

The perceiver, which makes gist tokens of the text, sees nothing noisy and is computed.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    readers = 1 + len(config.injection_layer_ids)  # the perceiver and each block that attends to the text encoder
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, readers, size.text, config.cap_feat_dim),
    }


BRIA_FIBO2 = ModelSpec(
    class_name="BriaFibo2Transformer2DModel",
    modules=(
        "noise_refiner.*.attention",
        "noise_refiner.*.feed_forward",
        "layers.*.attention",
        "layers.*.cross_attention?",
        "layers.*.feed_forward",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=4096,  # the most that the pipeline takes; the blocks see 512 gist tokens of 2048 or more
)
