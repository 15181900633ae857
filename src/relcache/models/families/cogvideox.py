"""CogVideoX and CogVideoX 1.5 (Zhipu AI, arXiv 2408.06072): joint attention, and one feed-forward for both streams."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    patch_frames = config.patch_size_t or 1
    frames = -(-size.frames // patch_frames)  # the pipeline makes more frames where they do not fill the last patch
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(size.batch, frames * patch_frames, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "timestep": torch.full((size.batch,), 500),
    }
    if config.use_rotary_positional_embeddings:
        tokens = frames * (size.height // config.patch_size) * (size.width // config.patch_size)
        angles = torch.randn(tokens, config.attention_head_dim)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    if config.ofs_embed_dim:
        inputs["ofs"] = torch.full((1,), 2.0)
    return inputs


COGVIDEOX = ModelSpec(
    class_name="CogVideoXTransformer3DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=226,
    pipelines=("CogVideoXPipeline",),
)
