"""FLUX.3 (Black Forest Labs, 2026): blocks of the image alone, then joint blocks; attention and MLP side by side.

The blocks of the text alone and of the reference images alone do not depend on the sample: every step computes them.
"""

from relcache.models.inputs import call, filled, grid_ids, packed, text, where
from relcache.models.spec import ModelSpec

FLUX3 = ModelSpec(
    class_name="Flux3Transformer2DModel",
    modules=(
        "mode_blocks.image.*.attn",
        "mode_blocks.image.*.ff",
        "single_transformer_blocks.*.attn",
        "single_transformer_blocks.*.ff",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=packed("in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        timestep=filled(0.5),
        img_ids=lambda config, size: grid_ids(1, size.height // 2, size.width // 2, 1) * 0.5,
        txt_ids=lambda config, size: grid_ids(1, 1, 1, size.text),
        target_timestep=where("flow_map", filled(0.25)),
    ),
    text=480,  # the pipeline pads to multiples of 80, and writes prompts of up to 350 words itself
)
