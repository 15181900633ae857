"""Nucleus-Image (Nucleus AI): attention and feed-forward of each block; most feed-forwards are mixtures of experts."""

from relcache.models.inputs import call, filled, patches, random, text
from relcache.models.spec import ModelSpec

NUCLEUS_IMAGE = ModelSpec(
    class_name="NucleusMoEImageTransformer2DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.img_mlp"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=call(
        hidden_states=random("batch", patches, "in_channels"),
        img_shapes=lambda config, size: (
            [(1, size.height // config.patch_size, size.width // config.patch_size)] * size.batch
        ),
        encoder_hidden_states=text("joint_attention_dim"),
        encoder_hidden_states_mask=filled(1, "batch", "text"),
        timestep=filled(0.5),
    ),
    text=1024,  # at most: prompts are padded to a multiple of 8
)
