"""ConsisID (PKU-YuanGroup, arXiv 2411.17440): CogVideoX, whose video attends to a face after every other block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(size.batch, size.frames, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "timestep": torch.full((size.batch,), 500),
    }
    if config.use_rotary_positional_embeddings:
        tokens = size.frames * (size.height // config.patch_size) * (size.width // config.patch_size)
        angles = torch.randn(tokens, config.attention_head_dim)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    if config.is_train_face:  # one face for all samples
        inputs["id_cond"] = torch.randn(1, config.LFE_id_dim)
        inputs["id_vit_hidden"] = [torch.randn(1, 577, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)]
    return inputs


CONSISID = ModelSpec(
    class_name="ConsisIDTransformer3DModel",
    modules=(
        joint("transformer_blocks.*.attn1"),
        "transformer_blocks.*.ff",
        joint("perceiver_cross_attention.*?", "hidden_states"),  # its first argument is the face
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=226,
)
