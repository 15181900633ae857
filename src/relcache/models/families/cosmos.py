"""Cosmos Predict 1, 2 and 2.5 and Transfer 2.5 (NVIDIA, arXiv 2501.03575): self-attention, cross-attention and
feed-forward of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    def latents(channels: int) -> torch.Tensor:
        return torch.randn(size.batch, channels, size.frames, size.height, size.width)

    channels = config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim
    text = torch.randn(size.batch, size.text, channels)
    inputs: dict[str, Any] = {
        "hidden_states": latents(config.out_channels),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": text,
    }
    if config.img_context_dim_in:
        image = torch.randn(size.batch, config.img_context_num_tokens, config.img_context_dim_in)
        inputs["encoder_hidden_states"] = (text, image)
    if config.in_channels > config.out_channels:  # models that go on from given frames are told which these are
        inputs["condition_mask"] = torch.zeros_like(latents(config.in_channels - config.out_channels))
    if config.concat_padding_mask:
        inputs["padding_mask"] = torch.zeros(1, 1, size.height, size.width)
    return inputs


COSMOS = ModelSpec(
    class_name="CosmosTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
