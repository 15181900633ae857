"""HunyuanVideo 1.5 (Tencent, 2025): double blocks with joint attention over video, text, glyphs and the image."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint

GLYPH_TOKENS = 256
IMAGE_TOKENS = 729


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # The pipeline from text gives an image of zeros, which the model masks out but keeps in the sequence.
    image = torch.zeros if config.task_type == "t2v" else torch.randn
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text),
        "encoder_hidden_states_2": torch.randn(size.batch, GLYPH_TOKENS, config.text_embed_2_dim),
        "encoder_attention_mask_2": torch.ones(size.batch, GLYPH_TOKENS),
        "image_embeds": image(size.batch, IMAGE_TOKENS, config.image_embed_dim),
    }
    if config.use_meanflow:
        inputs["timestep_r"] = torch.full((size.batch,), 480.0)
    return inputs


HUNYUAN_VIDEO_1_5 = ModelSpec(
    class_name="HunyuanVideo15Transformer3DModel",
    modules=(joint("transformer_blocks.*.attn"), "transformer_blocks.*.ff", "transformer_blocks.*.ff_context"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_2"),
    inputs=_inputs,
    text=1000,
)
