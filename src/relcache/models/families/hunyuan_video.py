"""HunyuanVideo (Tencent, arXiv 2412.03603): double blocks with joint attention, then single blocks."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "pooled_projections": torch.randn(size.batch, config.pooled_projection_dim),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 6000.0)
    return inputs


HUNYUAN_VIDEO = ModelSpec(
    class_name="HunyuanVideoTransformer3DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=_inputs,
    text=256,
    pipelines=("HunyuanVideoPipeline",),
)
