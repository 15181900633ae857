"""FramePack on HunyuanVideo (Tencent; FramePack: arXiv 2504.12626): double blocks with joint attention, then single
blocks. The frames made so far, compressed the more the older they are, come before the tokens of the noisy frames."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # Frames of the history at full, half and quarter size; the first frame of the video comes before the latest one.
    history = {"latents_clean": 2, "latents_history_2x": 2, "latents_history_4x": 16}
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "pooled_projections": torch.randn(size.batch, config.pooled_projection_dim),
        "image_embeds": torch.randn(size.batch, 729, config.image_proj_dim),
        "indices_latents": torch.arange(1, 1 + size.frames),
    }
    start = 1 + size.frames
    for name, frames in history.items():
        inputs[name] = torch.randn(size.batch, config.in_channels, frames, size.height, size.width)
        inputs[f"indices_{name}"] = torch.arange(start, start + frames)
        start += frames
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 10000.0)
    return inputs


HUNYUAN_VIDEO_FRAMEPACK = ModelSpec(
    class_name="HunyuanVideoFramepackTransformer3DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=_inputs,
    text=256,
)
