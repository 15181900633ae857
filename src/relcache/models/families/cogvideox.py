"""CogVideoX and CogVideoX 1.5 (Zhipu AI, arXiv 2408.06072): joint attention, and one feed-forward for both streams."""

from typing import Any

from relcache.models.inputs import Size, call, filled, patches, random, rotation, text, where
from relcache.models.spec import ModelSpec, joint


def _frames(config: Any, size: Size) -> int:
    """Return the latent frames; the pipeline adds frames until the last patch is full."""
    patch = config.patch_size_t or 1
    return -(-size.frames // patch) * patch


def _tokens(config: Any, size: Size) -> int:
    return _frames(config, size) // (config.patch_size_t or 1) * patches(config, size)


COGVIDEOX = ModelSpec(
    class_name="CogVideoXTransformer3DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=random("batch", _frames, "in_channels", "height", "width"),
        encoder_hidden_states=text("text_embed_dim"),
        timestep=filled(500),
        image_rotary_emb=where("use_rotary_positional_embeddings", rotation(_tokens, "attention_head_dim")),
        ofs=where("ofs_embed_dim", filled(2.0, 1)),
    ),
    text=226,
    pipelines=("CogVideoXPipeline",),
)
