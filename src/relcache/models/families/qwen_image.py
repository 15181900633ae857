"""Qwen-Image, its Edit and Layered versions (Alibaba, arXiv 2508.02324): joint attention, a feed-forward for each
stream."""

from relcache.models.inputs import call, filled, packed_tokens, random, text, where
from relcache.models.spec import ModelSpec, joint

QWEN_IMAGE = ModelSpec(
    class_name="QwenImageTransformer2DModel",
    modules=(joint("transformer_blocks.*.attn"), "transformer_blocks.*.img_mlp", "transformer_blocks.*.txt_mlp"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=call(
        # Each frame is an image: a layer, or an image to edit.
        hidden_states=random("batch", lambda config, size: size.frames * packed_tokens(config, size), "in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        timestep=filled(0.5),
        img_shapes=lambda config, size: [[(1, size.height // 2, size.width // 2)] * size.frames] * size.batch,
        additional_t_cond=where("use_additional_t_cond", filled(0)),
    ),
    text=512,  # at most: prompts are not padded
    pipelines=("QwenImagePipeline",),
)
